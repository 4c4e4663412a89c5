// Finding, enlarging and comparing pictures. Text that others wrote is moved as nodes and set as text, never as HTML.
const form = document.querySelector("form.find[data-live]");
if (form) {
  const list = document.querySelector(".prompts"), rows = [...list.children];
  // The prompt alone, as `rankray browse` searches it: a heading's tag beside it has words and numbers of ours.
  const text = new Map(rows.map(row => [row, (row.querySelector("h3").title || row.querySelector("h3 bdi").textContent).toLowerCase()]));
  const mind = row => row.dataset.mind === undefined ? -1 : +row.dataset.mind;
  const orders = { agreed: (a, b) => mind(b) - mind(a), split: (a, b) => mind(a) - mind(b), prompt: (a, b) => text.get(a).localeCompare(text.get(b)) };
  let order = form.order.value;
  const find = () => {
    const words = form.text.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const row of rows) {
      const u = mind(row), minded = form.mind.value;
      row.hidden = !(words.every(word => text.get(row).includes(word)) && (!form.first.value || row.dataset.first === form.first.value)
        && (!minded || (minded === "one" ? u === 1 : u >= 0 && u < 0.5)) && (!form.failed.checked || "failed" in row.dataset));
      count += !row.hidden;
    }
    if (order !== form.order.value) list.append(...[...rows].sort(orders[order = form.order.value]));
    form.querySelector("output").textContent = `${count.toLocaleString("en")} of ${rows.length.toLocaleString("en")} prompts`;
  };
  form.hidden = false;
  form.addEventListener("input", find);
  form.addEventListener("submit", event => event.preventDefault());
  find();
}

const viewer = document.querySelector("dialog.viewer");
if (viewer) {
  let at = null, beside = null;
  const all = () => [...document.querySelectorAll(".prompt:not([hidden]) .zoom")];
  const ofPrompt = button => [...button.closest(".prompt").querySelectorAll(".zoom")];
  const scores = figure => [...figure.querySelectorAll("dd")];
  const enlarged = button => {
    const figure = button.closest("figure").cloneNode(true), picture = figure.querySelector("img");
    picture.loading = "eager";
    if (button.dataset.full) picture.src = button.dataset.full;
    figure.querySelector(".zoom").replaceWith(picture);
    return figure;
  };
  const show = () => {
    const shown = [at, beside].filter(Boolean).map(enlarged);
    if (shown.length === 2) scores(shown[0]).forEach((ours, i) => {
      const theirs = scores(shown[1])[i], gap = ours.dataset.v - theirs.dataset.v;
      if (gap) (gap > 0 ? ours : theirs).classList.add("more");
    });
    viewer.querySelector(".sides").replaceChildren(...shown);
    const heading = at.closest(".prompt").querySelector("h3");
    viewer.querySelector("h2").textContent = heading.title || heading.querySelector("bdi").textContent;
    viewer.querySelector(".bar-of .tag").textContent = `${all().indexOf(at) + 1} of ${all().length}`;
    viewer.querySelector("[data-key=c]").setAttribute("aria-pressed", String(Boolean(beside)));
  };
  const around = (items, item, step) => items[(items.indexOf(item) + step + items.length) % items.length];
  const move = step => {
    if (!beside) at = around(all(), at, step);
    else do beside = around(ofPrompt(at), beside, step); while (beside === at);
  };
  const prompt = step => {
    const place = ofPrompt(at).indexOf(at), heads = [...new Set(all().map(button => button.closest(".prompt")))];
    const there = [...around(heads, at.closest(".prompt"), step).querySelectorAll(".zoom")];
    at = there[Math.min(place, there.length - 1)];
    beside = beside && there.length > 1 ? around(there, at, 1) : null;
  };
  const doing = {
    ArrowLeft: () => move(-1), ArrowRight: () => move(1), ArrowUp: () => prompt(-1), ArrowDown: () => prompt(1),
    c: () => { beside = beside || ofPrompt(at).length < 2 ? null : around(ofPrompt(at), at, 1); },
  };
  const act = key => {
    if (key === "Escape") viewer.close();
    else if (doing[key]) { doing[key](); show(); }
    return key in doing;
  };
  document.addEventListener("click", event => {
    const button = event.target.closest(".prompt .zoom");
    if (button) { at = button; beside = null; show(); viewer.showModal(); }
  });
  viewer.addEventListener("click", event => { const button = event.target.closest("[data-key]"); if (button) act(button.dataset.key); });
  viewer.addEventListener("keydown", event => { if (!event.ctrlKey && !event.metaKey && !event.altKey && act(event.key)) event.preventDefault(); });
  viewer.addEventListener("close", () => { viewer.querySelector(".sides").replaceChildren(); at.focus(); });
}

// A vote: each button has its key, and a key that is held down votes once.
for (const button of document.querySelectorAll("form.vote [data-key]")) {
  document.addEventListener("keydown", event => {
    if (event.key !== button.dataset.key || event.repeat || event.target.closest("select") || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    if (!document.body.dataset.sent) { document.body.dataset.sent = "1"; button.click(); }
  });
}
