"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("js");

  // light and dark: as the system says, until the button is used
  const system = matchMedia("(prefers-color-scheme: dark)");
  const button = document.getElementById("theme");
  const show = (dark) => {
    root.classList.toggle("dark", dark);
    button.setAttribute("aria-pressed", String(dark));
  };
  show(system.matches);
  system.addEventListener("change", (event) => show(event.matches));
  button.addEventListener("click", () => show(!root.classList.contains("dark")));

  // one part at a time
  for (const choice of document.querySelectorAll("fieldset.choice")) {
    const parts = choice.parentElement.querySelectorAll(":scope > [data-part]");
    const pick = () => {
      const chosen = choice.querySelector("input:checked").value;
      for (const part of parts) part.hidden = part.dataset.part !== chosen;
    };
    choice.addEventListener("change", pick);
    pick();
  }

  // the tip of a point: on hover and on focus, away with Escape
  const tip = document.getElementById("tip");
  const hide = () => { tip.hidden = true; };
  for (const point of document.querySelectorAll(".point")) {
    const reveal = () => {
      tip.textContent = point.getAttribute("aria-label");
      tip.hidden = false;
      const place = point.querySelector("circle").getBoundingClientRect();
      const left = Math.min(place.right + 8, root.clientWidth - tip.offsetWidth - 8);
      tip.style.left = `${Math.max(8, left) + scrollX}px`;
      tip.style.top = `${place.bottom + 8 + scrollY}px`;
    };
    point.addEventListener("mouseenter", reveal);
    point.addEventListener("focus", reveal);
    point.addEventListener("mouseleave", hide);
    point.addEventListener("blur", hide);
  }
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });

  // sortable tables; a cell's number is in data-order, and what has none is last in both directions
  const missing = -Infinity; // what num-pre makes of nothing: last already where the largest come first
  DataTable.ext.type.order["num-asc"] = (a, b) => a === b ? 0 : a === missing ? 1 : b === missing || a < b ? -1 : 1;
  const still = { paging: false, info: false, searching: false, order: [], autoWidth: false };
  for (const table of document.querySelectorAll("table.sortable")) {
    new DataTable(table, { ...still, searching: table.classList.contains("searchable") });
  }

  // every job: drawn from the data at the end of the page
  const holder = document.getElementById("jobs");
  if (holder) {
    const jobs = JSON.parse(document.getElementById("jobs-data").textContent);
    const shown = (digits) => (value, kind) =>
      kind !== "display" ? value : value === null ? "–" : value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
    const text = (value, kind) => kind !== "display" ? value : String(value ?? "–").replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);
    const columns = jobs.columns.map(([title, digits]) =>
      digits === null ? { title, type: "string", render: text } : { title, className: "n", type: "num", render: title === "seed" ? text : shown(digits) });
    const table = new DataTable(holder, {
      data: jobs.rows, columns, deferRender: true, pageLength: 25, lengthMenu: [25, 100, 1000], order: [], autoWidth: false,
      language: { info: "_START_ to _END_ of _TOTAL_ jobs", infoEmpty: "no jobs", infoFiltered: "(of _MAX_ in all)", search: "Search:" },
    });
    for (const select of document.querySelectorAll(".filters select")) {
      select.addEventListener("change", () => {
        // by the data: a search of the library's own is blind to case, accents and what looks like a tag
        const place = Number(select.dataset.column), chosen = select.value;
        table.column(place).search.fixed("chosen", chosen === "" ? null : (_, row) => String(row[place]) === chosen).draw();
      });
    }
  }

  // paper opens what is folded, but for long lists, and the page is afterwards as it was
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not(.long, [open])")];
    for (const part of opened) part.open = true;
  });
  addEventListener("afterprint", () => { for (const part of opened) part.open = false; });
})();
