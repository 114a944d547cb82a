//! What a run tells: [`report`] is the whole result, [`csv`] and [`html`] show it, [`compare`] sets two side by side,
//! [`live`] shows a run while it goes on.

pub(crate) mod compare;
pub(crate) mod csv;
pub(crate) mod html;
pub(crate) mod live;
mod plot;
pub(crate) mod report;
