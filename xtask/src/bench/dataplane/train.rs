//! The load by which the agent's profile is taken: all that the bench does.

use std::{path::Path, time::Duration};

use super::{
    super::{
        Plan,
        ground::{Ground, progress},
    },
    load::{self, Workload},
    mesh,
};
use crate::setup;

/// How long each kind of load lasts.
const TIME: Duration = Duration::from_secs(4);

/// Puts load on a pair of this agent, and ends both in order, so that they write what they counted.
pub(crate) fn train(agent: &Path) -> anyhow::Result<()> {
    setup::run()?;
    let plan = Plan { profile: "dist".to_owned(), ..Plan::default() };
    let ground = Ground::prepare("train", &plan)?.with_agent(agent);
    let backend = ground.nginx()?;
    let mut contender = mesh::start(&ground, &backend, "", 1)?;
    let bar = progress(Workload::ALL.len() as u64);
    for workload in Workload::ALL {
        bar.set_message(workload.word());
        if let Some(address) = workload.address(&contender) {
            load::run(&ground, &workload, &contender, address, TIME)?;
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let pair = contender.pair.take();
    pair.into_iter().flat_map(|(caller, callee)| [caller, callee]).try_for_each(|mut process| process.finish())
}
