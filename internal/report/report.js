"use strict";
// The page can be read without this script. It adds values at the pointer, zoom into
// plots and the flame graph, a search, and tables that can be sorted.

const svgNS = "http://www.w3.org/2000/svg";
const make = (name, attributes) => {
	const element = document.createElementNS(svgNS, name);
	for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
	return element;
};

// The theme is the system's until a click on the button.
const theme = document.getElementById("theme");
const system = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (document.documentElement.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
const nameTheme = () => { theme.textContent = isDark() ? "Light" : "Dark"; };
theme.addEventListener("click", () => {
	document.documentElement.dataset.theme = isDark() ? "light" : "dark";
	nameTheme();
});
system.addEventListener("change", nameTheme);
theme.hidden = false;
nameTheme();

// A click on a head sorts a table, numbers from the greatest first.
for (const head of document.querySelectorAll("th")) {
	head.querySelector("button").addEventListener("click", () => {
		const table = head.closest("table"), column = head.cellIndex;
		const was = head.getAttribute("aria-sort");
		const descending = was === "none" ? head.classList.contains("n") : was === "ascending";
		for (const other of table.querySelectorAll("th")) other.setAttribute("aria-sort", "none");
		head.setAttribute("aria-sort", descending ? "descending" : "ascending");
		const key = (row) => row.cells[column].dataset.sort ?? row.cells[column].textContent;
		const sign = descending ? -1 : 1;
		const compare = (a, b) => {
			const x = Number(key(a)), y = Number(key(b));
			if (Number.isNaN(x) || Number.isNaN(y)) return key(a).localeCompare(key(b), "en", { numeric: true });
			return x === y ? 0 : x - y; // both may be Infinity
		};
		const body = table.tBodies[0];
		body.append(...[...body.rows].sort((a, b) => sign * compare(a, b)));
	});
}

const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
const size = (bytes) => {
	let i = 0;
	for (; Math.abs(bytes) >= 1024 && i < units.length - 1; i++) bytes /= 1024;
	return (i < 2 ? Math.trunc(bytes) : (Math.trunc(bytes * 10) / 10).toFixed(1)) + " " + units[i];
};
const pages = (n, unit) => size(n * unit) + (unit > 1 ? ` (${n.toLocaleString("en")} pages)` : "");
const short = (x) => String(Number(x.toPrecision(9)));
const clock = (ms) => {
	const minutes = Math.floor(ms / 60e3), [whole, part] = short((ms % 60e3) / 1e3).split(".");
	return `${Math.floor(minutes / 60)}:${String(minutes % 60).padStart(2, "0")}:${whole.padStart(2, "0")}${part ? "." + part : ""}`;
};
const time = (ms, end) => (end < 10e3 ? short(ms) + " ms" : end < 300e3 ? short(ms / 1e3) + " s" : clock(ms));

// niceStep returns the least round step that divides a span into at most n parts.
const niceStep = (span, n) => {
	const rough = span / n, power = 10 ** Math.floor(Math.log10(rough));
	if (rough < 30e3) return [1, 2, 2.5, 5, 10].find((m) => m * power >= rough) * power;
	return [1, 2, 5, 10, 30, 60, 120, 360, 720].find((m) => m * 60e3 >= rough) * 60e3 || Math.ceil(rough / 86400e3) * 86400e3;
};

const source = document.getElementById("data");
const data = source ? JSON.parse(source.textContent) : { Start: 0, End: 1, Plots: [] };
const reset = document.getElementById("reset");
let from = data.Start, to = data.End; // the visible range, in ms

// describe returns the tip of a plot's i-th bucket.
const describe = (plot, i) => {
	const lines = [];
	if (plot.Names) {
		const next = plot.T[i + 1] ?? data.End;
		lines.push(plot.Running ? `up to ${time(next, data.End)}` : `${time(plot.T[i], data.End)} to ${time(next, data.End)}`);
		const charged = plot.Names.map((name, k) => [name, plot.Pages[k][i] ?? 0]).filter(([, n]) => n > 0);
		for (const [name, n] of charged.reverse()) lines.push(`${name}: ${pages(n, plot.Unit)}`);
		if (charged.length === 0) lines.push("nothing charged");
		return lines.join("\n");
	}
	lines.push(time(plot.T[i], data.End));
	if (plot.Most[i] >= 0) {
		const least = plot.Least[i] === plot.Most[i] ? "" : size(plot.Least[i] * plot.Unit) + " to ";
		lines.push(`in use: ${least}${pages(plot.Most[i], plot.Unit)}`);
	}
	if (plot.Limit[i] >= 0) lines.push(`limit: ${pages(plot.Limit[i], plot.Unit)}`);
	for (const [what, n] of [["charges", plot.Charges[i]], ["failed", plot.Failed[i]], ["batch misses", plot.Misses[i]]]) {
		if (n > 0) lines.push(`${what}: ${n.toLocaleString("en")}`);
	}
	if (plot.Reclaim[i] > 0) lines.push(`reclaim: ${short(plot.Reclaim[i])} ms`);
	return lines.join("\n");
};

const views = [...document.querySelectorAll("figure.plot")].map((figure, number) => {
	const plot = data.Plots[number];
	const drawing = figure.querySelector(".drawing"), tip = figure.querySelector(".tip");
	const pictures = [...drawing.querySelectorAll(":scope > svg")].map((svg) => {
		const zone = svg.querySelector(".zone");
		const [x, y, width, height] = ["x", "y", "width", "height"].map((name) => Number(zone.getAttribute(name)));
		const chosen = make("rect", { class: "chosen", y, height, x, width: 0 });
		const cross = make("line", { class: "cross", y1: y, y2: y + height, visibility: "hidden" });
		svg.append(chosen, cross);
		return { svg, zone, x, y, width, height, chosen, cross, times: svg.querySelector(".times") };
	});
	const shown = () => pictures.find((p) => p.svg.getClientRects().length > 0) ?? pictures[0];
	const place = (p, ms) => p.x + ((ms - from) / (to - from)) * p.width;
	const timeAt = (event) => {
		const p = shown(), box = p.svg.getBoundingClientRect();
		const x = ((event.clientX - box.left) * p.svg.viewBox.baseVal.width) / box.width;
		return from + Math.min(Math.max((x - p.x) / p.width, 0), 1) * (to - from);
	};
	let current = -1;

	const draw = () => {
		for (const p of pictures) {
			const scale = p.width / (data.End - data.Start);
			p.zone.setAttribute("viewBox", `${(from - data.Start) * scale} 0 ${(to - from) * scale} ${p.height}`);
			for (const flag of p.svg.querySelectorAll(".flag")) {
				const at = data.Start + (Number(flag.dataset.x) - p.x) / scale;
				flag.setAttribute("transform", `translate(${place(p, at) - Number(flag.dataset.x)} 0)`);
				flag.setAttribute("visibility", at < from || at > to ? "hidden" : "visible");
			}
			const step = niceStep(to - from, p.width / (p.width < 400 ? 60 : 90)), ticks = [], bottom = p.y + p.height;
			for (let i = 0, first = Math.ceil(from / step); i < 20 && (first + i) * step <= to; i++) {
				const ms = (first + i) * step, x = place(p, ms);
				const text = make("text", { class: "f label", "text-anchor": "middle", "font-size": 12, x, y: bottom + 18.3 });
				text.textContent = time(ms, data.End);
				ticks.push(make("path", { class: "s grid", "stroke-width": 1, d: `M${x} ${bottom}v4` }), text);
			}
			p.times.replaceChildren(...ticks);
			p.cross.setAttribute("visibility", "hidden");
		}
		tip.hidden = true;
	};

	const show = (i) => {
		if (!(i in plot.T)) return;
		current = i;
		const middle = plot.Names ? (plot.T[i] + (plot.T[i + 1] ?? data.End)) / 2 : plot.T[i];
		for (const p of pictures) {
			p.cross.setAttribute("x1", place(p, middle));
			p.cross.setAttribute("x2", place(p, middle));
			p.cross.setAttribute("visibility", middle < from || middle > to ? "hidden" : "visible");
		}
		tip.textContent = describe(plot, i);
		tip.hidden = false;
		const p = shown(), scale = p.svg.getBoundingClientRect().width / p.svg.viewBox.baseVal.width;
		const x = place(p, middle) * scale, right = x + 14 + tip.offsetWidth <= figure.clientWidth;
		tip.style.left = Math.max(0, right ? x + 14 : x - 14 - tip.offsetWidth) + "px";
		tip.style.top = drawing.offsetTop + (p.y + 0.4 * p.height) * scale + "px"; // below the line of the usage
	};
	const nearest = (ms) => {
		if (plot.Names) return Math.max(0, plot.T.findLastIndex((t) => t <= ms));
		let best = 0;
		plot.T.forEach((t, i) => { if (Math.abs(t - ms) < Math.abs(plot.T[best] - ms)) best = i; });
		return best;
	};

	let begun = null; // where the range that is being dragged begins, in ms
	const choose = (a, b) => {
		for (const p of pictures) {
			p.chosen.setAttribute("x", place(p, Math.min(a, b)));
			p.chosen.setAttribute("width", (Math.abs(b - a) / (to - from)) * p.width);
		}
	};
	drawing.addEventListener("pointerdown", (event) => {
		if (event.button !== 0) return;
		begun = timeAt(event);
		drawing.setPointerCapture(event.pointerId);
	});
	drawing.addEventListener("pointermove", (event) => {
		const ms = timeAt(event);
		if (begun !== null) choose(begun, ms);
		show(nearest(ms));
	});
	drawing.addEventListener("pointerup", (event) => {
		if (begun === null) return;
		const end = timeAt(event), start = begun;
		begun = null;
		choose(0, 0);
		if (Math.abs(end - start) > (to - from) / 100) zoom(Math.min(start, end), Math.max(start, end));
	});
	drawing.addEventListener("pointercancel", () => { begun = null; choose(0, 0); });
	drawing.addEventListener("pointerleave", () => {
		tip.hidden = true;
		for (const p of pictures) p.cross.setAttribute("visibility", "hidden");
	});
	drawing.addEventListener("blur", () => { tip.hidden = true; });
	drawing.addEventListener("keydown", (event) => {
		const middle = current >= 0 && plot.T[current] >= from && plot.T[current] <= to ? plot.T[current] : (from + to) / 2;
		const span = to - from;
		switch (event.key) {
		case "ArrowLeft": show(Math.max(0, current - 1)); break;
		case "ArrowRight": show(Math.min(plot.T.length - 1, current + 1)); break;
		case "Home": show(0); break;
		case "End": show(plot.T.length - 1); break;
		case "+": case "=": zoom(middle - span / 4, middle + span / 4); show(current); break;
		case "-": zoom(middle - span, middle + span); show(current); break;
		case "Escape": zoom(data.Start, data.End); break;
		default: return;
		}
		event.preventDefault();
	});
	return draw;
});

// zoom sets the visible range of all plots, at least a microsecond.
const zoom = (a, b) => {
	if (b - a < 1e-3) return;
	from = Math.max(a, data.Start);
	to = Math.min(b, data.End);
	reset.hidden = from === data.Start && to === data.End;
	for (const draw of views) draw();
};
reset.addEventListener("click", () => zoom(data.Start, data.End));
addEventListener("keydown", (event) => { if (event.key === "Escape" && !reset.hidden) zoom(data.Start, data.End); });

// A click on a block of the flame graph shows it and its callees alone.
const flame = document.querySelector(".flame");
if (flame) {
	const drawing = flame.querySelector(".blocks"), tip = flame.querySelector(".tip"), tools = flame.querySelector(".tools");
	const search = tools.querySelector("input"), found = tools.querySelector(".found"), back = tools.querySelector("button");
	const blocks = [...drawing.querySelectorAll("svg svg")].map((svg) => ({
		svg, text: svg.querySelector("text"), name: data.Names?.[svg.dataset.name] ?? svg.textContent, y: Number(svg.getAttribute("y")), at: Number(svg.dataset.at), pages: Number(svg.dataset.pages),
	}));
	const all = blocks[0];
	let alone = all, current = null;
	const percent = (n) => `${((100 * n) / all.pages).toFixed(1)} %`;
	const isIn = (a, b) => a.at >= b.at && a.at + a.pages <= b.at + b.pages;
	const isSeen = (b) => (b.y < alone.y ? isIn(alone, b) : isIn(b, alone));

	const draw = () => {
		for (const b of blocks) {
			const above = b.y < alone.y, share = above ? 1 : b.pages / alone.pages;
			b.svg.classList.toggle("above", above);
			b.svg.setAttribute("display", isSeen(b) ? "inline" : "none");
			b.svg.setAttribute("x", above ? 0 : `${(100 * (b.at - alone.at)) / alone.pages}%`);
			b.svg.setAttribute("width", `${100 * share}%`);
			b.text.setAttribute("visibility", share * drawing.clientWidth < 25 ? "hidden" : "visible");
		}
		back.hidden = alone === all;
	};
	// point highlights a block and shows its tip, x pixels from the left.
	const point = (b, x) => {
		current?.svg.classList.remove("current");
		current = b;
		tip.hidden = b === null;
		if (b === null) return;
		b.svg.classList.add("current");
		tip.textContent = `${b.name}\n${pages(b.pages, Number(drawing.dataset.unit))}, ${percent(b.pages)}`;
		tip.style.left = Math.max(0, Math.min(x, flame.clientWidth - tip.offsetWidth)) + "px";
		tip.style.top = drawing.offsetTop + b.y + 24 + "px";
	};
	const show = (b) => {
		alone = b;
		draw();
	};
	const blockAt = (event) => blocks.find((b) => b.svg.contains(event.target));
	drawing.addEventListener("click", (event) => {
		const b = blockAt(event);
		if (b) show(b);
	});
	drawing.addEventListener("pointermove", (event) => point(blockAt(event) ?? null, event.clientX - drawing.getBoundingClientRect().left + 14));
	for (const left of ["pointerleave", "blur"]) drawing.addEventListener(left, () => point(null));
	drawing.addEventListener("keydown", (event) => {
		const b = current !== null && isSeen(current) ? current : alone;
		const seen = blocks.filter(isSeen), row = seen.filter((other) => other.y === b.y);
		let to = b;
		switch (event.key) {
		case "ArrowUp": to = seen.findLast((other) => other.y < b.y && isIn(b, other)); break;
		case "ArrowDown": to = seen.find((other) => other.y > b.y && isIn(other, b)); break;
		case "ArrowLeft": to = row[row.indexOf(b) - 1]; break;
		case "ArrowRight": to = row[row.indexOf(b) + 1]; break;
		case "Enter": case " ": show(b); break;
		case "Escape":
			if (alone === all) return;
			event.stopPropagation();
			show(all);
			break;
		default: return;
		}
		event.preventDefault();
		to ??= b;
		point(to, Number.parseFloat(to.svg.getAttribute("x")) / 100 * drawing.clientWidth);
	});
	back.addEventListener("click", () => show(all));
	search.addEventListener("input", () => {
		const wanted = search.value.toLowerCase();
		let end = 0, sum = 0; // a match counts with its callees
		for (const b of blocks) {
			const hit = wanted === "" || (b !== all && b.name.toLowerCase().includes(wanted));
			b.svg.classList.toggle("dim", !hit);
			if (!hit || b.at < end) continue;
			end = b.at + b.pages;
			sum += b.pages;
		}
		found.textContent = wanted === "" ? "" : ("cut" in drawing.dataset ? "at least " : "") + percent(sum);
	});
	addEventListener("resize", draw);
	tools.hidden = false;
	draw();
}
