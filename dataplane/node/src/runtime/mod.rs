//! Executors, the pulse, messages between cores and between nodes. glommio is named here and in
//! [`crate::core`] only.

mod certificate;
pub(crate) mod clock;
pub(crate) mod fd;
pub(crate) mod mesh;
pub(crate) mod net;
pub(crate) mod pulse;
pub(crate) mod tls;
