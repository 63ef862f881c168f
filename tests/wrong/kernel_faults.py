"""The faults of the Triton kernels and their launchers that somebody thought of, each with the test that notices it.

Races are among them: the interpreter runs programs one after another, so that a test of the source has to see them.
"""

from __future__ import annotations

from tests.wrong.named import Named

HERE = "tests/kernels/test_"

KERNEL_FAULTS: tuple[Named, ...] = (
    Named(
        "samples of the maps counted in 32 bits",
        "kernels.triton_kernels",
        "            n = ((pid - starts[k]) // tiles).to(tl.int64)\n"
        "            p = ((pid - starts[k]) % tiles) * BLOCK_P + tl.arange(0, BLOCK_P)\n"
        "            inside = p < pixels\n"
        "            t_base",
        "            n = (pid - starts[k]) // tiles\n"
        "            p = ((pid - starts[k]) % tiles) * BLOCK_P + tl.arange(0, BLOCK_P)\n"
        "            inside = p < pixels\n"
        "            t_base",
        (f"{HERE}launches.py::test_offsets_beyond_int32_reach_the_right_value[(4, 3, 2, 5)-0]",),
    ),
    Named(
        "channels beyond 32 bits",
        "kernels.triton_kernels",
        "    if WIDE:\n        c = c.to(tl.int64)\n    mask = (c < channels)[:, None] & inside[None, :]\n    return",
        "    mask = (c < channels)[:, None] & inside[None, :]\n    return",
        (f"{HERE}launches.py::test_offsets_beyond_int32_reach_the_right_value[(2, 4, 3, 2)-1]",),
    ),
    Named(
        "wide offsets from 2^31 on, not from a tile before",
        "kernels.triton_layout",
        ">= 2**31 - 2**20",
        ">= 2**31",
        (f"{HERE}launches.py::test_wide_offsets_are_those_that_leave_int32_inside_a_sample",),
    ),
    Named(
        "gradients are not scaled down",
        "kernels.triton_kernels",
        "if by != 1.0:",
        "if by > 1.0:",
        (f"{HERE}discrepancy.py::test_the_gradient_written_early_is_scaled_by_any_factor[triton-0.5]",),
    ),
    Named(
        "zero vectors of many channels get a gradient",
        "kernels.triton_kernels",
        "            g = tl.where((t_inverse == 0.0) | (s_inverse == 0.0), 0.0, g)\n",
        "",
        (f"{HERE}discrepancy.py::test_zero_vectors_get_no_gradient_and_spread_none[triton-1030]",),
    ),
    Named(
        "zero samples get a gradient",
        "kernels.triton_kernels",
        "    g = tl.where(zero, 0.0, g)\n",
        "",
        (f"{HERE}discrepancy.py::test_zero_samples_are_at_distance_1_and_get_no_gradient[triton]",),
    ),
    Named(
        "a NaN counts as zero in the sums of a sample",
        "kernels.triton_kernels",
        "    t_most = tl.max(tl.max(tl.abs(t), axis=0), axis=0)\n",
        "    t = tl.where(t == t, t, 0.0)\n    t_most = tl.max(tl.max(tl.abs(t), axis=0), axis=0)\n",
        (f"{HERE}discrepancy.py::test_not_a_number_is_not_hidden_when_flattened[triton]",),
    ),
    Named(
        "the image's maximum is read and written without an atomic",
        "kernels.fusion_kernels",
        "        tl.atomic_max(scores.to(tl.pointer_type(tl.int32)) + n, most)",
        "        place = scores.to(tl.pointer_type(tl.int32)) + n\n"
        "        tl.store(place, tl.maximum(tl.load(place), most))",
        (f"{HERE}launches.py::test_programs_write_together_only_where_an_atomic_decides",),
    ),
    Named(
        "tiles add to one sum of their image",
        "kernels.fusion_kernels",
        "        tl.store(partial + n * programs + local, total)",
        "        tl.store(partial + n * programs, tl.load(partial + n * programs) + total)",
        (f"{HERE}launches.py::test_programs_write_together_only_where_an_atomic_decides",),
    ),
    Named(
        "tiles add to one loss of their scale",
        "kernels.triton_kernels",
        "tl.store(losses + pid, factors[k] * tl.sum(",
        "tl.store(losses + starts[k], tl.load(losses + starts[k]) + factors[k] * tl.sum(",
        (f"{HERE}launches.py::test_programs_write_together_only_where_an_atomic_decides",),
    ),
    Named(
        "image scores start from what was in memory",
        "kernels.triton_kernels",
        "        tl.store(scores + pid, 0.0, mask=pid < samples)",
        "        tl.store(scores + pid, 0.0, mask=pid < 0)",
        (f"{HERE}fusion.py::test_whole_map_agrees_with_the_oracle[triton-{{'mode': 'product'}}]",),
    ),
    Named(
        "a table's low parts are left out",
        "kernels.fusion_kernels",
        '        total = tl.dot(high, rest, total, input_precision="tf32")',
        "        total = total + 0.0",
        (f"{HERE}triton_fusion.py::test_every_kind_of_launch_agrees_with_the_oracle",),
    ),
    Named(
        "a table begins elsewhere than its tile of the map",
        "kernels.fusion_kernels",
        "return (low // MULTIPLE) * MULTIPLE",
        "return low",
        (f"{HERE}triton_fusion.py::test_every_kind_of_launch_agrees_with_the_oracle",),
    ),
    Named(
        "a captured graph's tables are forgotten",
        "kernels.triton_fusion",
        "        _in_graphs[id(found)] = found\n",
        "        found.plan\n",
        (f"{HERE}triton_fusion.py::test_tables_that_a_captured_graph_reads_are_never_forgotten",),
    ),
    Named(
        "a NaN spreads over its tile where maps are fused at another size",
        "kernels.fusion_kernels",
        "        if EXACT:\n            by_sample = tl.max((value != value)",
        "        if EXACT:\n            by_sample = tl.max((value < value)",
        (f"{HERE}triton_fusion.py::test_what_is_not_finite_stays_where_it_is_drawn_from",),
    ),
    Named(
        "rows read sample by sample leave the maximum of those before",
        "kernels.fusion_kernels",
        "            most = tl.maximum(most, most_of_some)",
        "            most = most_of_some",
        (f"{HERE}triton_fusion.py::test_what_is_not_finite_stays_where_it_is_drawn_from",),
    ),
    Named(
        "pieces of a fused map begin where the first does",
        "kernels.fusion_kernels",
        "x = tl.minimum(column + at_x + at % PIECE_X,",
        "x = tl.minimum(column + at % PIECE_X,",
        (f"{HERE}triton_fusion.py::test_every_kind_of_launch_agrees_with_the_oracle",),
    ),
    Named(
        "a filtered tile has no rows above it",
        "kernels.fusion_kernels",
        "first_of(block_y * BLOCK_Y - REACH[0], MIDDLE[0]",
        "first_of(block_y * BLOCK_Y, MIDDLE[0]",
        (f"{HERE}triton_fusion.py::test_every_kind_of_launch_agrees_with_the_oracle",),
    ),
    Named(
        "a compiled kernel is used for tensors of another dtype",
        "kernels.triton_launch",
        "                found += one.dtype, one.data_ptr() & 15",
        "                found.append(one.data_ptr() & 15)",
        (f"{HERE}planned_launches.py::test_what_is_compiled_is_launched_again_for_tensors_alike_only",),
    ),
    Named(
        "a compiled kernel is used for tensors that are not aligned",
        "kernels.triton_launch",
        "                found += one.dtype, one.data_ptr() & 15",
        "                found.append(one.dtype)",
        (f"{HERE}planned_launches.py::test_what_is_compiled_is_launched_again_for_tensors_alike_only",),
    ),
    Named(
        "constants are handed on in the order of the plan",
        "kernels.triton_launch",
        "(plan.constants[name] for name in kernel.arg_names if name in plan.constants)",
        "plan.constants.values()",
        (f"{HERE}planned_launches.py::test_from_the_second_time_on_what_is_compiled_gets_what_triton_would_give_it",),
    ),
    Named(
        "a plan's arguments are not compared with Triton's",
        "kernels.triton_launch",
        '    return None if same else "Triton orders the arguments in another way"',
        "    return None",
        (f"{HERE}planned_launches.py::test_a_kernel_that_is_not_as_it_was_read_is_launched_by_triton",),
    ),
    Named(
        "any launcher will do",
        "kernels.triton_launch",
        "        if tuple(launcher[: len(LAUNCHER)]) != LAUNCHER:",
        "        if not launcher:",
        (f"{HERE}planned_launches.py::test_a_launcher_that_was_not_read_is_not_called",),
    ),
    Named(
        "any Triton is launched from plans",
        "kernels.triton_launch",
        '    if ".".join(version.split(".")[:2]) not in READ:',
        '    if version.startswith("2"):',
        (f"{HERE}planned_launches.py::test_a_triton_that_was_not_read_launches_itself",),
    ),
    Named(
        "the environment cannot turn launches from plans off",
        "kernels.triton_launch",
        '    if wanted != "planned":',
        '    if wanted == "never":',
        (f"{HERE}planned_launches.py::test_the_environment_turns_it_off_and_doctor_tells",),
    ),
    Named(
        "the search for neighbours launches on the current device",
        "kernels.neighbours_triton",
        "    with guard(arguments[0].device):",
        "    if arguments[0].device:",
        (f"{HERE}launches.py::test_there_is_one_place_that_launches",),
    ),
    Named(
        "two rows that the product cannot tell apart count as told apart",
        "kernels.neighbours_kernels",
        "    clear = second > limit",
        "    clear = second > best",
        (f"{HERE}neighbours.py::test_the_neighbours_are_the_oracles[triton-check_near_ties]",),
    ),
    Named(
        "of candidates at equal distances the last to arrive is taken",
        "kernels.neighbours_kernels",
        "    attains = here & (tl.load(found + pair, mask=here, other=0) == least)",
        "    attains = here",
        (f"{HERE}neighbours.py::test_what_is_unclear_is_settled_by_what_was_measured[triton]",),
    ),
    Named(
        "products without the low halves of the memory",
        "kernels.neighbours_kernels",
        "        piece = tl.dot(upper_q, lower_p, piece)\n",
        "",
        (f"{HERE}neighbours.py::test_the_product_keeps_its_bound[triton-3]",),
    ),
    Named(
        "calls of other strides count as alike",
        "kernels.ready",
        "t.shape, t.stride(), t.dtype",
        "t.shape, t.dtype",
        (f"{HERE}ready.py::test_calls_that_differ_in_anything_are_kept_apart",),
    ),
    Named(
        "calls of other options count as alike",
        "kernels.fusion",
        "sigma, border, score, at, len",
        "sigma, score, at, len",
        (f"{HERE}ready.py::test_calls_that_differ_in_anything_are_kept_apart",),
    ),
    Named(
        "who wants a gradient is no part of a call",
        "kernels.ready",
        ", t.device, t.requires_grad,",
        ", t.device,",
        (f"{HERE}ready.py::test_what_wants_a_gradient_is_part_of_a_loss",),
    ),
    Named(
        "students are told apart by their number alone",
        "kernels.losses",
        "len(teachers), *map(len, several)), everything)",
        "len(teachers), len(several)), everything)",
        (f"{HERE}ready.py::test_students_of_other_lengths_are_not_those_that_were_kept",),
    ),
    Named(
        "a call that fails stays kept",
        "kernels.ready",
        "        _kept[op].pop(key, None)\n        return None",
        "        return None",
        (f"{HERE}ready.py::test_a_call_that_fails_is_forgotten_and_goes_the_long_way",),
    ),
    Named(
        "equal scores end with their program",
        "kernels.ranks_triton",
        "tl.where(first == NONE, first_of_tie(scores, start), first)",
        "tl.where(first == NONE, start, first)",
        (f"{HERE}ranks.py::test_maps_whose_positives_fill_several_programs_agree[all pixels-few levels]",),
    ),
    Named(
        "equal scores do not go on in the next program",
        "kernels.ranks_triton",
        "end_of_tie(scores, end, positives), last)",
        "end, last)",
        (f"{HERE}ranks.py::test_maps_whose_positives_fill_several_programs_agree[all pixels-few levels]",),
    ),
    Named(
        "what lies beyond the last positive counts",
        "kernels.ranks_triton",
        "tl.where(here, true / called, 0.0)",
        "true / called",
        (f"{HERE}ranks.py::test_the_last_program_counts_what_is_there[all pixels-continuous-513]",),
    ),
    Named(
        "only the first chunk's scores have to be finite",
        "kernels.ranks_triton",
        "length = tl.where(row == 5, ends, programs)",
        "length = tl.where(row == 5, 2, programs)",
        (f"{HERE}ranks.py::test_a_score_that_is_not_finite_is_refused_in_whichever_chunk_it_lies",),
    ),
    Named(
        "chunks before the last are forgotten",
        "kernels.ranks_triton",
        "len(keys), number > 0)",
        "len(keys), False)",
        (f"{HERE}ranks.py::test_small_maps_agree_in_any_number_of_chunks",),
    ),
    Named(
        "what follows does not wait for the positives on their stream",
        "kernels.ranks_triton",
        "        here.wait_stream(there)\n",
        "        del there\n",
        (f"{HERE}ranks.py::test_on_a_gpu_the_positives_are_sorted_beside_all_pixels",),
    ),
)
