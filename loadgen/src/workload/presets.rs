//! Ready-made workloads: typical shapes, small enough to be prepared in a minute. Every value can be replaced.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::Settings;

/// A ready-made workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Preset {
    /// Writers add files of some MiB to a data lake, many in parts, and list what is there
    DatalakeIngest,
    /// A query engine reads column chunks out of large files
    AnalyticsScan,
    /// Small files, almost only read, few of them very popular
    Website,
    /// Small texts, written once, read soon after, some deleted
    Pastebin,
    /// Thumbnails, previews and originals; the newest are looked at most
    Photos,
    /// Segments and ranges of large files that are played
    Video,
    /// Large archives in parts, rarely read, old ones deleted
    Backup,
}

impl Preset {
    #[cfg(test)]
    pub(crate) const ALL: [Self; 7] = [
        Self::DatalakeIngest,
        Self::AnalyticsScan,
        Self::Website,
        Self::Pastebin,
        Self::Photos,
        Self::Video,
        Self::Backup,
    ];

    pub(super) fn settings(self) -> Settings {
        toml::from_str(self.text()).expect("the presets are tested")
    }

    /// The preset as the file one would write for it.
    fn text(self) -> &'static str {
        match self {
            Self::DatalakeIngest => {
                r#"
                mix = "put=55,multipart=30,list=8,head=7"
                size = "lognormal:median=4MiB,sigma=1,max=128MiB"
                new-share = 1.0
                popularity = "recent:0.9"
                objects = 50
                "#
            }
            Self::AnalyticsScan => {
                r#"
                mix = "range=80,head=10,get=5,list=5"
                size = "lognormal:median=16MiB,sigma=0.7,max=128MiB"
                range = "lognormal:median=512KiB,sigma=1.2,max=16MiB"
                popularity = "zipf:0.6"
                objects = 40
                "#
            }
            Self::Website => {
                r#"
                mix = "get=90,head=7,put=2,list=1"
                size = "histogram:2KiB=30,16KiB=40,128KiB=25,1MiB=5"
                popularity = "zipf:1.1"
                objects = 2000
                "#
            }
            Self::Pastebin => {
                r#"
                mix = "get=60,put=25,conditional=5,head=5,delete=5"
                size = "lognormal:median=2KiB,sigma=1.2,max=1MiB"
                new-share = 1.0
                popularity = "recent:0.9"
                objects = 2000
                "#
            }
            Self::Photos => {
                r#"
                mix = "get=72,put=15,head=5,list=4,copy=2,delete=2"
                size = "histogram:20KiB=50,200KiB=30,3MiB=20"
                new-share = 0.9
                popularity = "recent:0.8"
                objects = 500
                "#
            }
            Self::Video => {
                r#"
                mix = "range=70,get=15,put=10,head=5"
                size = "uniform:2MiB..12MiB"
                range = "uniform:512KiB..2MiB"
                new-share = 0.8
                popularity = "zipf:1.0"
                objects = 80
                "#
            }
            Self::Backup => {
                r#"
                mix = "multipart=70,list=10,delete=10,conditional=5,get=5"
                size = "uniform:16MiB..64MiB"
                new-share = 0.8
                popularity = "recent:0.5"
                objects = 16
                "#
            }
        }
    }
}
