//! Plots as SVG, drawn with the colours of the page around them.

use std::fmt::Write;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 240.0;
const LEFT: f64 = 64.0;
/// Half of the longest name of a share stands right of the last mark.
const RIGHT: f64 = 28.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 34.0;
/// Classes of the style sheet for the first, second, ... curve.
const CLASSES: [&str; 4] = ["c0", "c1", "c2", "c3"];

/// A curve with its name.
pub(super) struct Curve {
    pub(super) name: String,
    pub(super) points: Vec<(f64, f64)>,
}

/// An axis: its scale and what stands at it.
pub(super) struct Axis {
    pub(super) label: String,
    /// Value and text.
    pub(super) marks: Vec<(f64, String)>,
    pub(super) from: f64,
    pub(super) to: f64,
    /// Logarithmic.
    pub(super) log: bool,
}

impl Axis {
    /// From 0, or the smallest positive value of a logarithmic one, to the largest value.
    pub(super) fn over(label: &str, values: impl Iterator<Item = f64> + Clone, log: bool) -> Self {
        let most = values.clone().fold(0.0, f64::max);
        if !log {
            let step = nice_step(most);
            let to = (most / step).ceil().max(1.0) * step;
            let marks = steps(0.0, to, step);
            return Self { label: label.to_owned(), marks, from: 0.0, to, log };
        }
        let least = values.filter(|value| *value > 0.0).fold(f64::INFINITY, f64::min);
        let least = if least.is_finite() { least } else { 1.0 };
        let (from, to) =
            (10f64.powf(least.log10().floor()), 10f64.powf(most.max(least * 1.01).log10().ceil()));
        let mut marks = Vec::new();
        let mut mark = from;
        while mark <= to * 1.001 {
            marks.push((mark, show(mark)));
            mark *= 10.0;
        }
        Self { label: label.to_owned(), marks, from, to, log }
    }

    fn place(&self, value: f64) -> f64 {
        let scale = |value: f64| if self.log { value.max(self.from).ln() } else { value };
        let span = scale(self.to) - scale(self.from);
        if span > 0.0 { ((scale(value) - scale(self.from)) / span).clamp(0.0, 1.0) } else { 0.0 }
    }
}

/// 1, 2 or 5 times a power of ten, so that about five of it make `most`.
fn nice_step(most: f64) -> f64 {
    let rough = (most / 5.0).max(1e-9);
    let power = 10f64.powf(rough.log10().floor());
    [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|factor| factor * power)
        .find(|step| *step >= rough)
        .unwrap_or(power)
}

fn steps(from: f64, to: f64, step: f64) -> Vec<(f64, String)> {
    let mut marks = Vec::new();
    let mut mark = from;
    while mark <= to + step / 2.0 {
        marks.push((mark, show(mark)));
        mark += step;
    }
    marks
}

/// A number without useless digits.
pub(super) fn show(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        v if v >= 1e6 => format!("{:.1}M", value / 1e6),
        v if v >= 1e4 => format!("{:.0}k", value / 1e3),
        v if v >= 100.0 || value.fract() == 0.0 => format!("{value:.0}"),
        v if v >= 1.0 => format!("{value:.1}"),
        _ => format!("{value:.3}").trim_end_matches('0').to_owned(),
    }
}

fn frame(x: &Axis, y: &Axis) -> String {
    let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">");
    let (x_of, y_of) = scales(x, y);
    for (value, text) in &y.marks {
        let at = y_of(*value);
        write!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text class=\"mark\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            WIDTH - RIGHT,
            LEFT - 6.0,
            at + 4.0,
            escape(text)
        )
        .expect("writing to a string");
    }
    for (value, text) in &x.marks {
        let at = x_of(*value);
        write!(
            svg,
            "<text class=\"mark\" x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            HEIGHT - BOTTOM + 15.0,
            escape(text)
        )
        .expect("writing to a string");
    }
    write!(
        svg,
        "<text class=\"mark\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\
         <text class=\"mark\" x=\"13\" y=\"{:.1}\" text-anchor=\"middle\" transform=\"rotate(-90 13 {:.1})\">{}</text>",
        f64::midpoint(LEFT, WIDTH - RIGHT),
        HEIGHT - 4.0,
        escape(&x.label),
        f64::midpoint(TOP, HEIGHT - BOTTOM),
        f64::midpoint(TOP, HEIGHT - BOTTOM),
        escape(&y.label)
    )
    .expect("writing to a string");
    svg
}

fn scales<'a>(x: &'a Axis, y: &'a Axis) -> (impl Fn(f64) -> f64 + 'a, impl Fn(f64) -> f64 + 'a) {
    (
        move |value| LEFT + x.place(value) * (WIDTH - LEFT - RIGHT),
        move |value| HEIGHT - BOTTOM - y.place(value) * (HEIGHT - TOP - BOTTOM),
    )
}

/// Curves with a legend above them.
pub(super) fn curves(x: &Axis, y: &Axis, curves: &[Curve]) -> String {
    let mut svg = frame(x, y);
    let (x_of, y_of) = scales(x, y);
    for (curve, class) in curves.iter().zip(CLASSES.iter().cycle()) {
        let points: Vec<String> =
            curve.points.iter().map(|(x, y)| format!("{:.1},{:.1}", x_of(*x), y_of(*y))).collect();
        if points.len() == 1 {
            let (x, y) = curve.points[0];
            write!(
                svg,
                "<circle class=\"dot {class}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\"/>",
                x_of(x),
                y_of(y)
            )
            .expect("writing to a string");
        }
        write!(svg, "<polyline class=\"curve {class}\" points=\"{}\"/>", points.join(" "))
            .expect("writing to a string");
    }
    svg.push_str("</svg>");
    let legend: String = curves
        .iter()
        .zip(CLASSES.iter().cycle())
        .map(|(curve, class)| format!("<span class=\"key {class}\">{}</span>", escape(&curve.name)))
        .collect();
    format!("<p class=\"legend\">{legend}</p><div class=\"wide\">{svg}</div>")
}

/// Vertical bars with a name under and a number over each.
#[allow(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
pub(super) fn bars(label: &str, bars: &[(String, u64)]) -> String {
    let y = Axis::over(label, bars.iter().map(|bar| bar.1 as f64), false);
    let x = Axis { label: String::new(), marks: Vec::new(), from: 0.0, to: bars.len() as f64, log: false };
    let mut svg = frame(&x, &y);
    let (x_of, y_of) = scales(&x, &y);
    let width = (x_of(1.0) - x_of(0.0)) * 0.7;
    for (index, (name, count)) in bars.iter().enumerate() {
        let (middle, top) = (x_of(index as f64 + 0.5), y_of(*count as f64));
        write!(
            svg,
            "<rect class=\"bar c0\" x=\"{:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{:.1}\">\
             <title>{}: {count}</title></rect>\
             <text class=\"mark\" x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            middle - width / 2.0,
            HEIGHT - BOTTOM - top,
            escape(name),
            HEIGHT - BOTTOM + 15.0,
            escape(name)
        )
        .expect("writing to a string");
    }
    format!("<div class=\"wide\">{svg}</svg></div>")
}

/// Text that stands for itself in HTML.
pub(super) fn escape(text: &str) -> String {
    text.chars().fold(String::new(), |mut out, c| {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::{Axis, Curve, curves, escape, show};

    #[test]
    fn axes_hold_their_values() {
        let axis = Axis::over("x", [3.0, 97.0].into_iter(), false);
        assert_eq!((axis.from, axis.to, axis.marks.len()), (0.0, 100.0, 6));
        assert_eq!((axis.place(0.0), axis.place(50.0), axis.place(500.0)), (0.0, 0.5, 1.0));
        let log = Axis::over("x", [0.0, 0.3, 42.0].into_iter(), true);
        assert!((log.from - 0.1).abs() < 1e-9 && (log.to - 100.0).abs() < 1e-9);
        assert!((log.place(3.1622776) - 0.5).abs() < 1e-3);
        let empty = Axis::over("x", [].into_iter(), true);
        assert!(empty.to > empty.from);
    }

    #[test]
    fn curves_have_a_name_and_a_line_and_text_is_escaped() {
        let y = Axis::over("ms", [1.0, 2.0].into_iter(), false);
        let x = Axis::over("s", [0.0, 1.0].into_iter(), false);
        let points = vec![(0.0, 1.0), (1.0, 2.0)];
        let svg = curves(&x, &y, &[Curve { name: "p99 <b>".into(), points }]);
        assert!(svg.contains("p99 &lt;b&gt;") && svg.contains("<polyline") && svg.ends_with("</svg></div>"));
        assert_eq!(escape("a&\"<'"), "a&amp;&quot;&lt;&#39;");
        assert_eq!(
            [0.0, 0.05, 1.5, 40.0, 1234.0, 25_000.0, 3e6].map(show).join(" "),
            "0 0.05 1.5 40 1234 25k 3.0M"
        );
    }
}
