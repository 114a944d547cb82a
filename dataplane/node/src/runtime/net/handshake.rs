//! How two nodes begin a connection. No I/O here: both ends are given the other's message and answer with their own.
//!
//! ```text
//!   dialler                                       listener
//!     hello    {versions, who, to whom, nonce} ------->
//!     <------- answer   {version or refusal, versions, who, nonce, proof}
//!     proof    {proof} ------------------------------->
//!     <------- welcome  {or refusal}
//! ```
//!
//! Both prove that they hold the cluster key: HMAC-SHA256 under it, over the role, the hello and the answer, which have
//! both nonces, both identities and both ranges of versions. So a proof is of no use in another connection, in the
//! other role, or after somebody has changed what was offered. The keys of the two directions are derived from the
//! same. Who has the cluster key may claim to be any node. What is not proved: nothing is encrypted.
//!
//! These four messages are the same in every protocol version: two builds can always find out that they have no
//! version in common, and say so. Integers are little-endian.
//!
//! | message | bytes |
//! |---|---|
//! | hello | magic `QRPH`, 1, class, lowest u16, highest u16, cluster 16, node u32, incarnation u32, wanted node u32, nonce 32 |
//! | answer | magic, 2, status, version u16, lowest u16, highest u16, cluster 16, node u32, incarnation u32, nonce 32, proof 32 |
//! | proof | magic, 3, 0, proof 32 |
//! | welcome | magic, 4, status |

use hmac::{Hmac, KeyInit as _, Mac as _};
use quarry_clustermap::{ClusterId, Incarnation, NodeId};
use quarry_object::transport::Class;
use sha2::Sha256;
use subtle::ConstantTimeEq as _;

use super::{frame, key::ClusterKey};

/// The lowest version of the frames and messages that this build speaks.
pub(crate) const VERSION_LOWEST: u16 = 1;
/// The highest one.
pub(crate) const VERSION_HIGHEST: u16 = 1;

pub(crate) const HELLO_BYTES: usize = 70;
pub(crate) const ANSWER_BYTES: usize = 100;
pub(crate) const PROOF_BYTES: usize = 38;
pub(crate) const WELCOME_BYTES: usize = 6;
const MAGIC: &[u8; 4] = b"QRPH";

/// Versions that a build speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Versions {
    pub(crate) lowest: u16,
    pub(crate) highest: u16,
}

impl Versions {
    /// Of this build.
    pub(crate) const OURS: Self = Self { lowest: VERSION_LOWEST, highest: VERSION_HIGHEST };

    /// The highest one that both speak.
    fn common(self, other: Self) -> Option<u16> {
        let version = self.highest.min(other.highest);
        (version >= self.lowest.max(other.lowest)).then_some(version)
    }
}

impl std::fmt::Display for Versions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} to {}", self.lowest, self.highest)
    }
}

/// One end of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Identity {
    pub(crate) cluster: ClusterId,
    pub(crate) node: NodeId,
    pub(crate) incarnation: Incarnation,
    pub(crate) versions: Versions,
}

/// Why there is no connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum HandshakeError {
    #[error("not a handshake")]
    Malformed,
    #[error("no version in common: this node speaks {ours}, the other one {theirs}")]
    Version { ours: Versions, theirs: Versions },
    #[error("the other node belongs to another cluster")]
    Cluster,
    #[error("another node than the one wanted answers at the address")]
    OtherNode,
    #[error("the other node has started again since: this is an earlier run of it")]
    Stale,
    #[error("the other node does not have the same cluster key")]
    Key,
    #[error("the other node refused, status {status}")]
    Refused { status: u8 },
}

impl HandshakeError {
    fn status(self) -> u8 {
        match self {
            Self::Version { .. } => 1,
            Self::Cluster => 2,
            Self::OtherNode => 3,
            Self::Stale => 4,
            Self::Key => 5,
            Self::Malformed | Self::Refused { .. } => 6,
        }
    }
}

/// What a finished handshake leaves.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Session {
    pub(crate) version: u16,
    pub(crate) peer: Identity,
    pub(crate) class: Class,
    pub(crate) send_key: [u8; 32],
    pub(crate) receive_key: [u8; 32],
}

impl std::fmt::Debug for Session {
    /// Without the keys.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Session(version {}, {}, {:?})", self.version, self.peer.node, self.class)
    }
}

fn hmac(key: &ClusterKey, role: &str, hello: &[u8], answer: &[u8]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key.bytes()).expect("any length is a key");
    mac.update(role.as_bytes());
    mac.update(hello);
    mac.update(answer);
    mac.finalize().into_bytes().into()
}

/// Roles are as long as each other, so that none is the beginning of another with its text.
const LISTENER: &str = "quarry peer: proof of listener. ";
const DIALLER: &str = "quarry peer: proof of dialler.  ";
const KEY_OF_LISTENER: &str = "quarry peer: frames of listener.";
const KEY_OF_DIALLER: &str = "quarry peer: frames of dialler. ";

struct Cursor<'b>(&'b [u8]);

impl Cursor<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (head, rest) = self.0.split_at(N);
        self.0 = rest;
        head.try_into().expect("split there")
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn begins(&mut self, kind: u8) -> Result<(), HandshakeError> {
        if self.take() == *MAGIC && self.take() == [kind] { Ok(()) } else { Err(HandshakeError::Malformed) }
    }

    fn versions(&mut self) -> Versions {
        Versions { lowest: self.u16(), highest: self.u16() }
    }

    fn identity(&mut self, versions: Versions) -> Identity {
        Identity {
            cluster: ClusterId(self.take()),
            node: NodeId(self.u32()),
            incarnation: Incarnation(self.u32()),
            versions,
        }
    }
}

fn put_identity(bytes: &mut Vec<u8>, identity: &Identity) {
    bytes.extend(identity.cluster.0);
    bytes.extend(identity.node.0.to_le_bytes());
    bytes.extend(identity.incarnation.0.to_le_bytes());
}

fn put_versions(bytes: &mut Vec<u8>, versions: Versions) {
    bytes.extend(versions.lowest.to_le_bytes());
    bytes.extend(versions.highest.to_le_bytes());
}

/// The end that connects, after its hello.
pub(crate) struct Dialler<'k> {
    me: Identity,
    key: &'k ClusterKey,
    target: NodeId,
    class: Class,
    hello: Vec<u8>,
}

impl<'k> Dialler<'k> {
    /// The hello to send first; the nonce is random.
    pub(crate) fn start(
        me: Identity,
        key: &'k ClusterKey,
        target: NodeId,
        class: Class,
        nonce: [u8; 32],
    ) -> (Self, Vec<u8>) {
        let mut hello = MAGIC.to_vec();
        hello.extend([1, frame::class_byte(class)]);
        put_versions(&mut hello, me.versions);
        put_identity(&mut hello, &me);
        hello.extend(target.0.to_le_bytes());
        hello.extend(nonce);
        assert_eq!(hello.len(), HELLO_BYTES, "the table above");
        (Self { me, key, target, class, hello: hello.clone() }, hello)
    }

    /// Checks the answer; the proof to send, and the session if the welcome is [`welcomed`].
    pub(crate) fn answered(self, answer: &[u8; ANSWER_BYTES]) -> Result<(Vec<u8>, Session), HandshakeError> {
        let mut cursor = Cursor(answer);
        cursor.begins(2)?;
        let [status] = cursor.take();
        let (version, theirs) = (cursor.u16(), cursor.versions());
        let peer = cursor.identity(theirs);
        if status == (HandshakeError::Version { ours: theirs, theirs }).status() {
            return Err(HandshakeError::Version { ours: self.me.versions, theirs });
        }
        if status != 0 {
            return Err(HandshakeError::Refused { status });
        }
        let expected = hmac(self.key, LISTENER, &self.hello, &answer[..ANSWER_BYTES - 32]);
        if !bool::from(expected.ct_eq(&answer[ANSWER_BYTES - 32..])) {
            return Err(HandshakeError::Key);
        }
        if self.me.versions.common(theirs) != Some(version) {
            return Err(HandshakeError::Version { ours: self.me.versions, theirs });
        }
        if peer.cluster != self.me.cluster {
            return Err(HandshakeError::Cluster);
        }
        if peer.node != self.target {
            return Err(HandshakeError::OtherNode);
        }
        let mut proof = MAGIC.to_vec();
        proof.extend([3, 0]);
        proof.extend(hmac(self.key, DIALLER, &self.hello, answer));
        let session = Session {
            version,
            peer,
            class: self.class,
            send_key: hmac(self.key, KEY_OF_DIALLER, &self.hello, answer),
            receive_key: hmac(self.key, KEY_OF_LISTENER, &self.hello, answer),
        };
        Ok((proof, session))
    }
}

/// What the listener said last.
pub(crate) fn welcomed(welcome: &[u8; WELCOME_BYTES]) -> Result<(), HandshakeError> {
    let mut cursor = Cursor(welcome);
    cursor.begins(4)?;
    match cursor.take() {
        [0] => Ok(()),
        [5] => Err(HandshakeError::Key),
        [status] => Err(HandshakeError::Refused { status }),
    }
}

/// The end that listens, after its answer.
#[derive(Debug)]
pub(crate) struct Listener {
    expected: [u8; 32],
    session: Session,
}

impl Listener {
    /// The answer to a hello; without a listener it is a refusal, to be sent before the connection is closed.
    /// `is_current` says whether a run of a node may still be the newest one.
    pub(crate) fn answer(
        me: Identity,
        key: &ClusterKey,
        nonce: [u8; 32],
        hello: &[u8; HELLO_BYTES],
        is_current: impl FnOnce(NodeId, Incarnation) -> bool,
    ) -> (Vec<u8>, Result<Self, HandshakeError>) {
        let checked = Self::check(me, hello, is_current);
        let (status, version) = match &checked {
            Ok((version, ..)) => (0, *version),
            Err(error) => (error.status(), 0),
        };
        let mut answer = MAGIC.to_vec();
        answer.extend([2, status]);
        answer.extend(version.to_le_bytes());
        put_versions(&mut answer, me.versions);
        put_identity(&mut answer, &me);
        answer.extend(nonce);
        // Nothing is proved to one that is refused.
        let proof = if checked.is_ok() { hmac(key, LISTENER, hello, &answer) } else { [0; 32] };
        answer.extend(proof);
        assert_eq!(answer.len(), ANSWER_BYTES, "the table above");
        let listener = checked.map(|(version, peer, class)| Self {
            expected: hmac(key, DIALLER, hello, &answer),
            session: Session {
                version,
                peer,
                class,
                send_key: hmac(key, KEY_OF_LISTENER, hello, &answer),
                receive_key: hmac(key, KEY_OF_DIALLER, hello, &answer),
            },
        });
        (answer, listener)
    }

    fn check(
        me: Identity,
        hello: &[u8; HELLO_BYTES],
        is_current: impl FnOnce(NodeId, Incarnation) -> bool,
    ) -> Result<(u16, Identity, Class), HandshakeError> {
        let mut cursor = Cursor(hello);
        cursor.begins(1)?;
        let [class] = cursor.take();
        let theirs = cursor.versions();
        let peer = cursor.identity(theirs);
        let target = NodeId(cursor.u32());
        let (ours, common) = (me.versions, me.versions.common(theirs));
        let version = common.ok_or(HandshakeError::Version { ours, theirs })?;
        let class = frame::class_of(class).ok_or(HandshakeError::Malformed)?;
        if peer.cluster != me.cluster {
            return Err(HandshakeError::Cluster);
        }
        if target != me.node {
            return Err(HandshakeError::OtherNode);
        }
        if !is_current(peer.node, peer.incarnation) {
            return Err(HandshakeError::Stale);
        }
        Ok((version, peer, class))
    }

    /// Checks the dialler's proof; the welcome, or a refusal, to send.
    pub(crate) fn proved(self, proof: &[u8; PROOF_BYTES]) -> (Vec<u8>, Result<Session, HandshakeError>) {
        let mut cursor = Cursor(proof);
        let began = cursor.begins(3);
        let result = match began {
            Err(error) => Err(error),
            Ok(()) if bool::from(self.expected.ct_eq(&proof[PROOF_BYTES - 32..])) => Ok(self.session),
            Ok(()) => Err(HandshakeError::Key),
        };
        let mut welcome = MAGIC.to_vec();
        welcome.extend([4, result.as_ref().map_or_else(|error| error.status(), |_| 0)]);
        (welcome, result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(node: u32, versions: (u16, u16)) -> Identity {
        Identity {
            cluster: ClusterId([7; 16]),
            node: NodeId(node),
            incarnation: Incarnation(5),
            versions: Versions { lowest: versions.0, highest: versions.1 },
        }
    }

    struct Meeting {
        dialler: Identity,
        dialler_key: [u8; 32],
        target: u32,
        listener: Identity,
        current: bool,
        /// Flips a bit of the so many-th byte of all messages together.
        damage: Option<usize>,
    }

    impl Default for Meeting {
        fn default() -> Self {
            Self {
                dialler: identity(1, (1, 1)),
                dialler_key: [1; 32],
                target: 2,
                listener: identity(2, (1, 1)),
                current: true,
                damage: None,
            }
        }
    }

    type Outcome = Result<Session, HandshakeError>;

    impl Meeting {
        fn send<const N: usize>(&self, from: usize, message: &[u8]) -> [u8; N] {
            let mut bytes: [u8; N] = message.try_into().unwrap();
            if let Some(at) = self.damage.and_then(|at| at.checked_sub(from)).filter(|at| *at < N) {
                bytes[at] ^= 0x10;
            }
            bytes
        }

        /// What the dialler and the listener think.
        fn hold(&self) -> (Outcome, Option<Outcome>) {
            let (key, theirs) = (ClusterKey::new([1; 32]), ClusterKey::new(self.dialler_key));
            let (dialler, hello) =
                Dialler::start(self.dialler, &theirs, NodeId(self.target), Class::Bulk, [3; 32]);
            let hello = self.send(0, &hello);
            let (answer, listener) =
                Listener::answer(self.listener, &key, [4; 32], &hello, |_, _| self.current);
            let answer = self.send(HELLO_BYTES, &answer);
            let (proof, session) = match dialler.answered(&answer) {
                Ok(proved) => proved,
                Err(error) => return (Err(error), listener.err().map(Err)),
            };
            let proof = self.send(HELLO_BYTES + ANSWER_BYTES, &proof);
            let (welcome, accepted) = listener.expect("answered with a proof").proved(&proof);
            let welcome = self.send(HELLO_BYTES + ANSWER_BYTES + PROOF_BYTES, &welcome);
            (welcomed(&welcome).map(|()| session), Some(accepted))
        }
    }

    #[test]
    fn two_nodes_with_the_same_key_meet() {
        let (dialler, listener) = Meeting::default().hold();
        let (dialler, listener) = (dialler.unwrap(), listener.unwrap().unwrap());
        assert_eq!((dialler.version, dialler.peer.node, listener.peer.node), (1, NodeId(2), NodeId(1)));
        assert_eq!((dialler.class, listener.class), (Class::Bulk, Class::Bulk));
        assert!(dialler.send_key == listener.receive_key && dialler.receive_key == listener.send_key);
        assert!(dialler.send_key != dialler.receive_key);
    }

    #[test]
    fn the_highest_common_version_is_spoken_and_a_refusal_names_both_ranges() {
        let meet = |ours: (u16, u16), theirs: (u16, u16)| {
            let (dialler, listener) = (identity(1, ours), identity(2, theirs));
            Meeting { dialler, listener, ..Meeting::default() }.hold().0
        };
        assert_eq!(meet((1, 2), (2, 3)).unwrap().version, 2);
        assert_eq!(meet((2, 3), (1, 2)).unwrap().version, 2);
        assert_eq!(meet((1, 4), (1, 4)).unwrap().version, 4);
        let error = meet((1, 1), (2, 3)).unwrap_err();
        assert_eq!(error.to_string(), "no version in common: this node speaks 1 to 1, the other one 2 to 3");
        assert!(matches!(meet((4, 5), (2, 3)), Err(HandshakeError::Version { .. })));
    }

    #[test]
    fn strangers_are_refused() {
        let wrong_key = Meeting { dialler_key: [2; 32], ..Meeting::default() }.hold();
        assert_eq!(wrong_key.0, Err(HandshakeError::Key));
        let wrong_node = Meeting { target: 3, ..Meeting::default() }.hold();
        assert_eq!(
            wrong_node,
            (Err(HandshakeError::Refused { status: 3 }), Some(Err(HandshakeError::OtherNode)))
        );
        let earlier_run = Meeting { current: false, ..Meeting::default() }.hold();
        assert_eq!(
            earlier_run,
            (Err(HandshakeError::Refused { status: 4 }), Some(Err(HandshakeError::Stale)))
        );
        let cluster = Identity { cluster: ClusterId([8; 16]), ..identity(1, (1, 1)) };
        let other_cluster = Meeting { dialler: cluster, ..Meeting::default() }.hold();
        assert_eq!(other_cluster.1, Some(Err(HandshakeError::Cluster)));
    }

    /// A dialler without the key cannot get in with the listener's own proof.
    #[test]
    fn a_reflected_proof_is_refused() {
        let (key, me) = (ClusterKey::new([1; 32]), identity(2, (1, 1)));
        let (_, hello) = Dialler::start(identity(1, (1, 1)), &key, NodeId(2), Class::Urgent, [3; 32]);
        let (answer, listener) = Listener::answer(me, &key, [4; 32], &hello.try_into().unwrap(), |_, _| true);
        let mut proof = MAGIC.to_vec();
        proof.extend([3, 0]);
        proof.extend(&answer[ANSWER_BYTES - 32..]);
        assert_eq!(listener.unwrap().proved(&proof.try_into().unwrap()).1, Err(HandshakeError::Key));
    }

    #[test]
    fn whatever_is_changed_on_the_way_ends_the_handshake() {
        for at in 0..HELLO_BYTES + ANSWER_BYTES + PROOF_BYTES + WELCOME_BYTES {
            // The zero of the proof message means nothing.
            if at == HELLO_BYTES + ANSWER_BYTES + 5 {
                continue;
            }
            let (dialler, _) = Meeting { damage: Some(at), ..Meeting::default() }.hold();
            assert!(dialler.is_err(), "byte {at}");
        }
    }
}
