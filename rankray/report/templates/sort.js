for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  const key = (row, i) => row.cells[i].dataset.v ?? row.cells[i].textContent.trim();
  heads.forEach((head, i) => {
    if (!head.textContent.trim()) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const rows = [...body.rows].filter(row => key(row, i) !== ""), empty = [...body.rows].filter(row => key(row, i) === "");
      const numeric = rows.every(row => !isNaN(key(row, i)));
      const before = head.getAttribute("aria-sort"), first = numeric ? "descending" : "ascending";
      const order = before === first ? (numeric ? "ascending" : "descending") : first;
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      rows.sort((a, b) => sign * (numeric ? key(a, i) - key(b, i) : key(a, i).localeCompare(key(b, i))));
      body.append(...rows, ...empty);
    });
  });
}
