// Filters and sortable columns for the index of methods. Without JavaScript it is a plain table.
"use strict";

for (const table of document.querySelectorAll("table.methods-index")) {
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const headers = [...table.tHead.rows[0].cells];
  const text = (row, column) => row.cells[column].textContent.trim();

  const bar = document.createElement("p");
  bar.className = "methods-filter";
  bar.innerHTML = '<label>Filter <input type="search" placeholder="adam, 2023, 8, …"></label>';
  const input = bar.querySelector("input");
  const status = document.createElement("span");
  status.setAttribute("role", "status");
  (table.closest(".pst-scrollable-table-container") ?? table).before(bar);

  // A list to choose from, for columns with few different values; a cell may have several.
  const values = (row, column) => text(row, column).split(", ");
  const choices = [];
  for (const title of ["Part", "Oracle", "Passes", "State", "Kernel", "Claims", "Year"]) {
    const column = headers.findIndex((header) => header.textContent.trim().startsWith(title));
    const select = document.createElement("select");
    select.ariaLabel = title; // without it the name would have all options in it
    select.add(new Option("any", ""));
    const known = new Set(rows.flatMap((row) => values(row, column)));
    for (const value of [...known].sort((a, b) => a.localeCompare(b, "en", { numeric: true }))) {
      select.add(new Option(value));
    }
    const label = document.createElement("label");
    label.append(`${title} `, select);
    bar.append(label);
    choices.push([column, select]);
  }
  bar.append(status);

  // Every word must occur somewhere in the row, and every choice in its column.
  function filter() {
    const words = input.value.toLowerCase().split(/\s+/);
    for (const row of rows) {
      const all = row.textContent.toLowerCase();
      row.hidden = !(
        words.every((word) => all.includes(word)) &&
        choices.every(([column, { value }]) => !value || values(row, column).includes(value))
      );
    }
    const shown = rows.filter((row) => !row.hidden).length;
    status.textContent = `${shown} of ${rows.length}`;
  }
  bar.addEventListener("input", filter);
  window.addEventListener("pageshow", filter); // after "back", with what was typed before

  headers.forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = header.textContent.trim();
    header.replaceChildren(button);
    button.addEventListener("click", () => {
      const up = header.getAttribute("aria-sort") !== "ascending";
      headers.forEach((other) => other.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = (row) => text(row, column);
      rows.sort((a, b) => key(a).localeCompare(key(b), "en", { numeric: true }) * (up ? 1 : -1));
      body.append(...rows);
    });
  });
}
