//! The phases of a change of the trust anchor. No I/O, no clock.

/// A phase: what has been done so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// There is a new root. Nobody trusts it yet.
    Prepared,
    /// The trust bundle holds both roots, and agents get it.
    Distributing,
    /// Leaves are issued from the new root. From here on there is no way back.
    Issuing,
    /// Agents renew, until no live leaf chains to the old root.
    Proving,
    /// The old root has left the trust bundle, and its keys are erased.
    Retiring,
    /// Agents have the bundle without it.
    Done,
    /// The new root went before anything was issued from it.
    Aborted,
}

impl Phase {
    /// All of them.
    pub(crate) const ALL: [Self; 7] =
        [Self::Prepared, Self::Distributing, Self::Issuing, Self::Proving, Self::Retiring, Self::Done, Self::Aborted];

    /// The word in the store, in status and in messages.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Prepared => "prepared",
            Self::Distributing => "distributing",
            Self::Issuing => "issuing",
            Self::Proving => "proving",
            Self::Retiring => "retiring",
            Self::Done => "done",
            Self::Aborted => "aborted",
        }
    }

    /// Reads the word.
    pub(crate) fn read(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|phase| phase.as_str() == text)
    }

    /// The phase after it; none after the last ones.
    pub(crate) fn next(self) -> Option<Self> {
        match self {
            Self::Prepared => Some(Self::Distributing),
            Self::Distributing => Some(Self::Issuing),
            Self::Issuing => Some(Self::Proving),
            Self::Proving => Some(Self::Retiring),
            Self::Retiring => Some(Self::Done),
            Self::Done | Self::Aborted => None,
        }
    }

    /// Whether nothing is under way.
    pub(crate) fn is_over(self) -> bool {
        self.next().is_none()
    }

    /// Whether it can be taken back: nobody holds a leaf of the new root.
    pub(crate) fn can_abort(self) -> bool {
        matches!(self, Self::Prepared | Self::Distributing)
    }

    /// Whether agents should hold leaves of the new root.
    pub(crate) fn renews(self) -> bool {
        matches!(self, Self::Issuing | Self::Proving)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_phase_leads_to_the_end_and_only_the_first_two_lead_back() {
        for phase in Phase::ALL {
            assert_eq!(Phase::read(phase.as_str()), Some(phase));
            let steps = std::iter::successors(Some(phase), |phase| phase.next());
            assert!(matches!(steps.last(), Some(Phase::Done | Phase::Aborted)));
        }
        assert_eq!(Phase::ALL.into_iter().filter(|phase| phase.can_abort()).count(), 2);
        assert!(Phase::ALL.into_iter().all(|phase| !phase.can_abort() || phase < Phase::Issuing));
    }
}
