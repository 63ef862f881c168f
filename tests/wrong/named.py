"""The faults that somebody thought of, each with the test that has to notice it."""

from __future__ import annotations

from dataclasses import dataclass

from tests.wrong.mutants import HERE


@dataclass(frozen=True, slots=True)
class Named:
    """A fault in words, as a change of text, and the tests that must notice it."""

    name: str
    module: str
    before: str
    after: str
    tests: tuple[str, ...]


# faults that somebody thought of; all have to be noticed
NAMED: tuple[Named, ...] = (
    Named(
        "WideResNet-50-2's decoder without widening",
        "reverse",
        "inner = outputs // Narrow.expansion * widen if narrow else None",
        "inner = outputs // Narrow.expansion if narrow else None",
        (f"{HERE}test_initial_weights.py::test_every_module_has_the_parameters_counted_by_hand[wide_resnet50_2]",),
    ),
    Named(
        "fusion without ReLU",
        "reverse",
        "nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)\n    )\n\n\ndef layout_of",
        "nn.BatchNorm2d(outputs), nn.Identity()\n    )\n\n\ndef layout_of",
        (f"{HERE}test_golden_networks.py::test_a_network_answers_as_it_did[fusion of resnet18]",),
    ),
    Named(
        "no He initialisation",
        "backbones.resnet",
        '            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")',
        "            module.weight",
        (f"{HERE}test_initial_weights.py::test_what_lies_between_and_the_decoder_begin_as_reverse_distillations_do",),
    ),
    Named(
        "the cloner with PyTorch's initialisation, not Xavier's",
        "mkd",
        "    nn.init.xavier_uniform_(layer.weight)\n",
        "",
        (f"{HERE}test_initial_weights.py::test_the_cloner_begins_with_xaviers_uniform_weights",),
    ),
    Named(
        "SGD without weight decay",
        "training.loop",
        "momentum=settings.momentum, weight_decay=decay, fused",
        "momentum=settings.momentum, fused",
        (f"{HERE}test_recipes.py::test_the_optimiser_has_every_constant_of_the_settings",),
    ),
    Named(
        "x and x^a exchanged in the student's pass",
        "eca_mskdad",
        "both = self.student(torch.cat([x, x_a]))",
        "both = self.student(torch.cat([x_a, x]))",
        (
            f"{HERE}test_eca_mskdad.py::test_each_image_is_compared_with_its_own_copy_and_each_network_with_its_own_image",
        ),
    ),
    Named(
        "one draw of the augmentation for the whole batch",
        "augmentation",
        "chance = torch.rand(8, count, generator=generator)",
        "chance = torch.rand(8, 1, generator=generator).expand(8, count)",
        (f"{HERE}test_augmentation.py::test_every_image_has_its_own_chance",),
    ),
    Named(
        "attention of stages in their first blocks",
        "backbones.resnet",
        "last=position == count - 1)",
        "last=position == 0)",
        (f"{HERE}test_backbones.py::test_attention_of_stages_sits_in_their_last_blocks",),
    ),
    Named(
        "RD4AD with Adam's usual betas",
        "rd4ad",
        "betas: tuple[float, float] = (0.5, 0.999)",
        "betas: tuple[float, float] = (0.9, 0.999)",
        (f"{HERE}test_recipes.py::test_the_paper_preset_is_the_papers_recipe",),
    ),
    Named(
        "STFPM with anomalib's weight decay",
        "stfpm",
        "weight_decay: float = 1e-4",
        "weight_decay: float = 1e-3",
        (f"{HERE}test_recipes.py::test_the_paper_preset_is_the_papers_recipe",),
    ),
    Named(
        "the cloner with average pooling",
        "mkd",
        "return F.max_pool2d(x if signed else rectify(x), 2)",
        "return F.avg_pool2d(x if signed else rectify(x), 2)",
        (f"{HERE}test_mkd.py::test_taps_of_fixed_weights_are_the_official_cloners",),
    ),
    Named(
        "a patch pasted without a change of colour",
        "fractalad.anomaly",
        "patch = change_colour(window(image, source, side), rng)",
        "patch = window(image, source, side)",
        (f"{HERE}test_fractalad_anomalies.py::test_on_one_colour_the_patch_shows_by_its_change_of_colour_alone",),
    ),
    Named(
        "FractalAD with a tenth of its steps",
        "fractalad.settings",
        "STEPS = 1200",
        "STEPS = 120",
        (f"{HERE}test_fractalad_words.py::test_the_paper_preset_is_the_official_configuration",),
    ),
    Named(
        "FractalAD passes the unsmoothed level down",
        "fractalad.segmentation",
        "self.smoothings[k](laterals[k] + self.alignments[k](laterals[k], top))\n            levels.append(top)",
        "laterals[k] + self.alignments[k](laterals[k], top)\n            levels.append(self.smoothings[k](top))",
        (f"{HERE}test_fractalad_head.py::test_logits_of_fixed_weights_are_the_official_heads",),
    ),
    Named(
        "FractalAD's flow without bias",
        "fractalad.segmentation",
        "self.flow = nn.Conv2d(2 * width, 2, 3, padding=1)",
        "self.flow = nn.Conv2d(2 * width, 2, 3, padding=1, bias=False)",
        (f"{HERE}test_fractalad_head.py::test_every_module_has_the_official_number_of_parameters",),
    ),
    Named(
        "FractalAD's mask dilated once",
        "fractalad.anomaly",
        "DILATIONS = 3",
        "DILATIONS = 1",
        (
            f"{HERE}test_fractalad_anomalies.py::test_finishing_dilates_the_mask_by_three_pixels_and_keeps_noise_inside_it",
        ),
    ),
    Named(
        "FractalAD's noise in every sample",
        "fractalad.anomaly",
        "NOISE_CHANCE, NOISE_LEVELS = 0.5, 10.0",
        "NOISE_CHANCE, NOISE_LEVELS = 1.0, 10.0",
        (f"{HERE}test_fractalad_anomalies.py::test_half_of_the_samples_get_noise_of_ten_levels_inside_the_mask_alone",),
    ),
    Named(
        "FractalAD's channels drawn without replacement",
        "fractalad.colour",
        "(3 * rng.random(2)).astype(np.int64)",
        "np.argsort(rng.random(3))[:2]",
        (f"{HERE}test_fractalad_anomalies.py::test_the_two_channels_are_drawn_with_replacement",),
    ),
    Named(
        "FractalAD's attention on the teacher's features",
        "fractalad.detector",
        "return attention_weightings(teacher_taps, student_taps)",
        "return attention_weightings(student_taps, teacher_taps)",
        (f"{HERE}test_fractalad.py::test_the_attention_weights_the_students_features_by_half_the_cosine_distance",),
    ),
    Named(
        "objects found without the median",
        "fractalad.objects",
        'most = ndimage.uniform_filter(found.astype(np.float64), WINDOW, mode="nearest") > 0.5',
        "most = found",
        (f"{HERE}test_fractalad_objects.py::test_what_is_found_is_a_mean_of_25_cells_and_then_a_median_of_25",),
    ),
    Named(
        "MKD's lambda on the direction",
        "mkd",
        "return terms.direction + settings.value_weight * terms.value",
        "return settings.value_weight * terms.direction + terms.value",
        (f"{HERE}test_mkd.py::test_training_and_scoring_weigh_the_value_and_score_only_the_deepest_layers",),
    ),
    Named(
        "MKD scores its shallow taps",
        "mkd",
        "discrepancy(source[-settings.scored :], cloned[-settings.scored :])",
        "discrepancy(source[: settings.scored], cloned[: settings.scored])",
        (f"{HERE}test_mkd.py::test_training_and_scoring_weigh_the_value_and_score_only_the_deepest_layers",),
    ),
    Named(
        "PaDiM's covariance divided by N",
        "padim",
        "max(len(features) - 1, 1)",
        "len(features)",
        (f"{HERE}test_padim.py::test_whitening_gives_the_mahalanobis_distance",),
    ),
    Named(
        "PaDiM with interpolated embeddings",
        "padim",
        '(height, width), mode="nearest")',
        '(height, width), mode="bilinear")',
        (f"{HERE}test_padim.py::test_the_embedding_is_the_chosen_channels_each_at_the_finest_tap",),
    ),
    Named(
        "SPADE compares with the pixels of all images",
        "spade",
        "self.distances(one, gallery[near])",
        "self.distances(one, gallery)",
        (f"{HERE}test_spade.py::test_scores_are_as_defined",),
    ),
    Named(
        "SPADE finds images by the shallowest tap",
        "spade",
        "images=torch.cat([taps[-1].mean((2, 3))",
        "images=torch.cat([taps[0].mean((2, 3))",
        (f"{HERE}test_spade.py::test_the_deepest_tap_finds_the_images_and_the_three_before_it_the_pixels",),
    ),
    Named(
        "PatchCore's neighbours without zeros beyond the border",
        "patchcore",
        "F.avg_pool2d(tap, side, 1, side // 2)",
        "F.avg_pool2d(tap, side, 1, side // 2, count_include_pad=False)",
        (f"{HERE}test_patchcore.py::test_the_embedding_is_that_of_the_code_it_follows",),
    ),
    Named(
        "PatchCore's coreset goes on from the nearest",
        "patchcore",
        "first = int(away.argmax())",
        "first = int(away.where(away >= 0, torch.inf).argmin())",
        (f"{HERE}test_patchcore.py::test_the_coreset_is_that_of_the_plain_greedy_search",),
    ),
    Named(
        "PatchCore re-weighted by the patch's own neighbours",
        "patchcore",
        "nearest(memory[star], memory, min(count, len(memory)))[1]",
        "nearest(x, memory, min(count, len(memory)))[1]",
        (f"{HERE}test_patchcore.py::test_the_weight_is_equation_7",),
    ),
    Named(
        "RD++'s bottleneck fed by the teacher's taps, not by the projected ones",
        "rdpp",
        "return Outputs(self.decoder(self.bottleneck(projected))",
        "return Outputs(self.decoder(self.bottleneck(taps))",
        (f"{HERE}test_rdpp.py::test_the_student_restores_from_projected_taps_and_projects_noised_ones_alike",),
    ),
    Named(
        "RD++'s decoder restores the projected taps",
        "rdpp",
        'distillation_loss(taps, restored, kind="flattened")',
        'distillation_loss(projected, restored, kind="flattened")',
        (f"{HERE}test_rdpp.py::test_the_terms_are_their_formulas_with_their_weights",),
    ),
    Named(
        "RD++'s contrast without its margin",
        "rdpp",
        "(cosine - MARGIN).clamp_min(0)",
        "cosine.clamp_min(0)",
        (f"{HERE}test_rdpp.py::test_the_contrast_is_its_formula",),
    ),
    Named(
        "RD++'s projections learn at the decoder's rate",
        "rdpp",
        '{"params": projections, "lr": self.settings.projection_rate}',
        '{"params": projections}',
        (f"{HERE}test_rdpp.py::test_the_projections_have_a_rate_of_their_own",),
    ),
    Named(
        "RD++'s projections normed over the batch",
        "rdpp",
        "nn.InstanceNorm2d(outputs)",
        "nn.BatchNorm2d(outputs, affine=False)",
        (f"{HERE}test_rdpp.py::test_a_projection_is_four_convolutions_each_normed_per_image_and_rectified",),
    ),
    Named(
        "RD++'s noise turned upside down",
        "rdpp",
        "+= field[:, :height, :width]",
        "-= field[:, :height, :width]",
        (f"{HERE}test_rdpp.py::test_a_pseudo_anomaly_is_a_rectangle_of_noise_that_is_added",),
    ),
    Named(
        "a transport without the clouds' own",
        "rdpp",
        "return across - (of_x + of_y) / 2",
        "return across",
        (f"{HERE}test_rdpp.py::test_a_cloud_in_another_order_is_the_same_cloud",),
    ),
    Named(
        "simplex noise that falls off by the square",
        "simplex_noise",
        "nearness.pow(4)",
        "nearness.pow(2)",
        (f"{HERE}test_simplex_noise.py::test_the_field_is_the_sum_over_vertices",),
    ),
    Named(
        "STAD's dense network without gaps between what it looks at",
        "stad",
        "stride, apart = (2 * stride, apart) if halved else (stride, 2 * apart)",
        "stride, apart = (2 * stride, apart) if halved else (stride, apart)",
        (f"{HERE}test_stad.py::test_the_dense_descriptors_are_those_of_each_patch_alone",),
    ),
    Named(
        "STAD's students learn the descriptors as they are",
        "stad",
        'return (made - self.get_buffer("centre")) / self.get_buffer("deviation")',
        "return made",
        (f"{HERE}test_stad.py::test_each_student_learns_the_normalised_descriptors",),
    ),
    Named(
        "STAD's students learn as one",
        "stad",
        "terms += [(said - target).square().sum(1).mean() for said in scale.answers(seen)]",
        "terms.append((torch.stack(scale.answers(seen)).mean(0) - target).square().sum(1).mean())",
        (f"{HERE}test_stad.py::test_each_student_learns_the_normalised_descriptors",),
    ),
    Named(
        "STAD without the variance",
        "stad",
        "return torch.stack([error, variance], 1)",
        "return torch.stack([error, 0 * variance], 1)",
        (f"{HERE}test_stad.py::test_error_and_variance_are_their_formulas",),
    ),
    Named(
        "STAD's errors in units of the images it learnt from",
        "stad",
        "self.learn_what_is_usual(others)",
        "self.learn_what_is_usual(learnt)",
        (f"{HERE}test_stad.py::test_what_is_usual_is_learnt_from_images_that_nothing_learns_from",),
    ),
    Named(
        "STAD's descriptors go on learning with the students",
        "stad",
        "            with torch.no_grad():\n                target = scale.targets(seen)",
        "            target = scale.targets(seen)",
        (f"{HERE}test_stad.py::test_each_student_learns_the_normalised_descriptors",),
    ),
    Named(
        "PatchCore pools narrow taps as the official code pools wide ones",
        "patchcore",
        'return "adaptive" if self.smooths else "mean"',
        'return "adaptive"',
        (f"{HERE}test_patchcore.py::test_by_default_taps_too_narrow_for_adaptive_pooling_are_averaged",),
    ),
    Named(
        "EfficientAD's student learns the teacher's features as they are",
        "efficientad.detector",
        "weight.div_(deviation[:, None, None, None])",
        "weight.mul_(1.0)",
        (f"{HERE}test_efficientad.py::test_targets_have_mean_zero_and_deviation_one_over_the_images",),
    ),
    Named(
        "EfficientAD's autoencoder sees the image as it is",
        "efficientad.detector",
        "made, imitation = student.autoencoder(seen[1]).float()",
        "made, imitation = student.autoencoder(seen[0]).float()",
        (f"{HERE}test_efficientad.py::test_the_students_terms_are_their_formulas",),
    ),
    Named(
        "EfficientAD's student imitates an autoencoder that does not come towards it",
        "efficientad.detector",
        '"imitation": F.mse_loss(imitation, made)',
        '"imitation": F.mse_loss(imitation, made.detach())',
        (f"{HERE}test_efficientad.py::test_a_terms_gradient_reaches_what_it_is_about",),
    ),
    Named(
        "EfficientAD's penalty on the normal images",
        "efficientad.detector",
        "answers[count:].square().mean()",
        "answers[:count].square().mean()",
        (f"{HERE}test_efficientad.py::test_the_students_terms_are_their_formulas",),
    ),
    Named(
        "EfficientAD's quantiles of the images it learnt from",
        "efficientad.detector",
        "self.learn_what_is_usual(others)",
        "self.learn_what_is_usual(learnt)",
        (f"{HERE}test_efficientad.py::test_the_quantiles_are_of_images_that_nothing_learns_from",),
    ),
    Named(
        "EfficientAD's student compared with itself in the second map",
        "efficientad.detector",
        "(outputs.teacher, outputs.autoencoder), (outputs.student, outputs.imitation)",
        "(outputs.teacher, outputs.autoencoder), (outputs.student, outputs.student)",
        (f"{HERE}test_efficientad.py::test_the_map_is_the_mean_of_both_between_their_quantiles",),
    ),
    Named(
        "a PDN rectified at its end",
        "backbones.pdn",
        "return found[:-1]",
        "return found",
        (f"{HERE}test_efficientad.py::test_a_patch_description_network_has_the_papers_layers",),
    ),
)
