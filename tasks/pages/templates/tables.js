"use strict";
// Sort by a heading, filter by words and traits. Without this script the tables stand in the order of the file.
for (const block of document.querySelectorAll(".sortable")) {
  const body = block.querySelector("tbody"), rows = [...body.rows], headings = [...block.querySelectorAll("thead th")];
  const controls = block.querySelector(".controls"), count = controls.querySelector("output");
  const words = controls.querySelector("input[type=search]");
  const boxes = [...controls.querySelectorAll("input[type=checkbox]")];

  function filter() {
    const sought = words.value.trim().toLowerCase(), traits = boxes.filter((box) => box.checked).map((box) => box.value);
    for (const row of rows) {
      const has = row.dataset.traits.split(" ");
      row.hidden = !(row.textContent.toLowerCase().includes(sought) && traits.every((trait) => has.includes(trait)));
    }
    count.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} shown`;
  }

  function sort(heading, column) {
    const isNumber = heading.classList.contains("number") || heading.dataset.numeric !== undefined;
    const isAscending = heading.ariaSort ? heading.ariaSort === "descending" : !isNumber || column === 0;
    for (const other of headings) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", isAscending ? "ascending" : "descending");
    const key = (row) => row.cells[column].dataset.key;
    const compare = (a, b) => (isNumber ? Number(a) - Number(b) : a.localeCompare(b));
    const ordered = [...rows].sort((a, b) => {
      if (!key(a) || !key(b)) return !key(a) - !key(b);
      return isAscending ? compare(key(a), key(b)) : compare(key(b), key(a));
    });
    body.append(...ordered);
  }

  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.append(...heading.childNodes);
    button.addEventListener("click", () => sort(heading, column));
    heading.append(button);
  });
  controls.addEventListener("input", filter);
  controls.hidden = false;
  filter();
}
