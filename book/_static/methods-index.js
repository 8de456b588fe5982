// A filter and sortable columns for the index of methods. Without JavaScript it is a plain table.
"use strict";

for (const table of document.querySelectorAll("table.methods-index")) {
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const headers = [...table.tHead.rows[0].cells];

  const bar = document.createElement("p");
  bar.className = "methods-filter";
  bar.innerHTML =
    '<label>Filter <input type="search" placeholder="adam, gradient, 8, …"></label> ' +
    '<span role="status"></span>';
  (table.closest(".pst-scrollable-table-container") ?? table).before(bar);
  const input = bar.querySelector("input");
  const status = bar.querySelector("span");

  // Every word must occur somewhere in the row.
  function filter() {
    const words = input.value.toLowerCase().split(/\s+/);
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
    const shown = rows.filter((row) => !row.hidden).length;
    status.textContent = `${shown} of ${rows.length}`;
  }
  input.addEventListener("input", filter);
  filter();

  headers.forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = header.textContent.trim();
    header.replaceChildren(button);
    button.addEventListener("click", () => {
      const up = header.getAttribute("aria-sort") !== "ascending";
      headers.forEach((other) => other.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = (row) => row.cells[column].textContent.trim();
      rows.sort((a, b) => key(a).localeCompare(key(b), "en", { numeric: true }) * (up ? 1 : -1));
      body.append(...rows);
    });
  });
}
