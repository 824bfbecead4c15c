// Reduces what the page renders, and what markdown-it renders, to the same nested lists: [tag, …children], text, and links'
// addresses. What the page adds (frames of code and tables, classes) falls away.
() => {
  const RENAMED = { del: "s" };
  const merge = (children) => {
    const out = [];
    for (const child of children) {
      if (typeof child === "string" && typeof out.at(-1) === "string") out[out.length - 1] += child;
      else out.push(child);
    }
    // Spaces at the ends and around line breaks are not shown.
    const block = (child) => Array.isArray(child) && !["a", "code", "em", "strong", "s", "img"].includes(child[0]);
    const trimmed = out.map((child, i) => {
      if (typeof child !== "string") return child;
      let text = child.replaceAll(/[ \n]+/g, " ");
      if (i === 0 || block(out[i - 1])) text = text.trimStart();
      if (i === out.length - 1 || block(out[i + 1])) text = text.trimEnd();
      return text;
    });
    return trimmed.filter((child) => child !== "");
  };
  const walk = (node) => {
    if (node.nodeType === Node.TEXT_NODE) return [node.data];
    if (node.nodeType !== Node.ELEMENT_NODE) return [];
    const tag = node.localName;
    const children = () => merge([...node.childNodes].flatMap(walk));
    if (tag === "pre") return [["pre", node.textContent.replace(/\n$/, "")]];
    if (tag === "figcaption" || tag === "button") return [];
    if (tag === "figure" || tag === "div" || tag === "span") return [...node.childNodes].flatMap(walk);
    if (tag === "code") return [["code", node.textContent]];
    if (tag === "a") return [["a", node.getAttribute("href"), ...children()]];
    const level = /\blevel-(\d)/.exec(node.className);
    if (level !== null) return [[`h${level[1]}`, ...children()]];
    if (tag === "ol") return [["ol", node.getAttribute("start") ?? "1", ...children()]];
    if (tag === "p" && node.parentNode.localName === "li") return [...children(), " "]; // Loose or tight: only the margins differ.
    return [[RENAMED[tag] ?? tag, ...children()]];
  };
  window.reduce = (root) => merge([...root.childNodes].flatMap(walk));
  window.reduceHtml = (html) => reduce(new DOMParser().parseFromString(html, "text/html").body);
};
