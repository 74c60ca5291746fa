//! A mesh that several replicas serve: what others changed is taken in, and what agents say here is told to the others.
//!
//! The revision in the store is the truth. A replica that hears of a newer one, or that asks because it has heard nothing for a
//! while, takes in everything between its own and that one at one moment of the store.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use outrider_policy::ServiceName;
use outrider_runtime::Drain;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::{ChangeError, Command, Policy, Route, Session, Sessions, World, routes::label_of, targets_of};
use crate::{
    publish::{Mesh, Publisher},
    store::{Changes, PolicyRow, SessionRow, Store, StoreError, WantsRow},
};

/// Attempts at a change while other replicas make theirs.
pub(crate) const ATTEMPTS: u32 = 30;
/// How often the store is asked when it gives no hint.
pub(crate) const ASK: Duration = Duration::from_millis(800);
/// What agents say within this time is told to the others at once.
const TELL: Duration = Duration::from_millis(40);
/// How often the others are told again which agents are here.
const ASSERT: Duration = Duration::from_secs(3);
/// That an agent was heard of is told to the others this often, in seconds.
const SEEN: i64 = 10;

/// Does something on the newest state of the mesh; again when another replica changed policies at the same time.
macro_rules! abreast {
    ($own:ident, $work:expr) => {{
        let mut attempts = 0;
        loop {
            let done = match $own.come_abreast().await {
                Ok(()) => $work.await,
                Err(error) => Err(error),
            };
            attempts += 1;
            let overtaken = matches!(done, Err(ChangeError::Store(StoreError::Overtaken)));
            if !overtaken || attempts == ATTEMPTS {
                break done;
            }
            $crate::registry::give_way(attempts).await;
        }
    }};
}
pub(crate) use abreast;

/// Leaves others the time that they need, each time more, and never the same for two that are in each other's way.
pub(crate) async fn give_way(attempts: u32) {
    sleep(Duration::from_millis(10).mul_f64(fastrand::f64() * f64::from(attempts.min(20)))).await;
}

impl Publisher {
    /// Before a change: on the newest state of the mesh.
    pub(crate) async fn come_abreast(&mut self) -> Result<(), ChangeError> {
        if self.store.is_shared() {
            self.catch_up().await?;
        }
        Ok(())
    }

    /// Takes in everything between our revision and that of the store.
    pub(crate) async fn catch_up(&mut self) -> Result<(), StoreError> {
        let changes = self.store.changes_since(self.world.revision).await?;
        if changes.revision > self.world.revision {
            // Read after the revision: it is at least as new, and never shown later than that.
            self.load_trust(changes.revision).await?;
            for (revision, touched) in self.world.absorb(changes)? {
                let concerned = |targets: &[outrider_policy::Target]| touched.iter().any(|policy| policy.applies_to_any(targets));
                self.sessions.remember(revision, self.world.reach(concerned));
            }
            self.show();
        }
        Ok(())
    }

    /// Whether a revision that we made follows ours, so that nothing of others lies between.
    pub(crate) fn is_next(&self, revision: Option<u64>) -> bool {
        revision.is_none_or(|revision| revision == self.world.revision + 1)
    }

    /// The same where nobody waits for it: what fails is tried again soon.
    pub(crate) async fn follow(&mut self) {
        if let Err(error) = self.catch_up().await {
            tracing::warn!(error = outrider_runtime::tasks::chain(&error), "not caught up with the store, trying again");
        }
    }

    /// Takes in what others changed, and has an eye on agents that nobody has.
    pub(crate) async fn tend(&mut self) {
        if !self.store.is_shared() {
            return;
        }
        self.follow().await;
        let until = Instant::now() + self.grace;
        let alone = self.world.agents.values().filter(|agent| agent.present && !self.streams.contains_key(&agent.id));
        for agent in alone.filter(|agent| self.sessions.find(&agent.id).is_none()) {
            self.leaving.entry(agent.id.clone()).or_insert(until);
        }
    }
}

impl World {
    /// Takes changes in. Returns which policies each revision touched, new and old.
    fn absorb(&mut self, changes: Changes) -> Result<BTreeMap<u64, Vec<Policy>>, StoreError> {
        let mut touched: BTreeMap<u64, Vec<Policy>> = BTreeMap::new();
        for (namespace, name, revision, json) in changes.policies {
            if Route::is_row_of(&name) {
                self.absorb_route(
                    PolicyRow { namespace, name, json: json.clone().unwrap_or_default(), revision },
                    json.is_some(),
                )?;
                continue;
            }
            let full_name = format!("{namespace}/{name}");
            let of_revision = touched.entry(revision).or_default();
            of_revision.extend(self.policies.get(&full_name).map(|old| Policy::clone(old)));
            match json {
                Some(json) => {
                    let policy = Policy::read(PolicyRow { namespace, name, json, revision })?;
                    of_revision.push(policy.clone());
                    self.change_policies(vec![policy], &[], revision);
                }
                None => self.change_policies(Vec::new(), &[full_name], revision),
            }
        }
        self.put_agents(changes.agents, changes.revision);
        Ok(touched)
    }
}

/// Routes that another replica put in or took out. Whom they concern is not remembered here.
impl World {
    fn absorb_route(&mut self, row: PolicyRow, is_there: bool) -> Result<(), StoreError> {
        let (revision, label) = (row.revision, label_of(&row));
        if is_there {
            let created = self.routes.get(&label).map_or(revision, |old| old.stored.created);
            let route = Route::read(row, created)?;
            self.change_routes(vec![route], &[], revision);
        } else {
            self.change_routes(Vec::new(), &[label], revision);
        }
        self.revision = revision;
        Ok(())
    }
}

/// Tells the other replicas what the agents here say, until drain.
pub(crate) async fn tell(store: Store, sessions: Sessions, drain: Drain) -> Result<(), std::convert::Infallible> {
    let mut changes = sessions.changes();
    let mut again = interval(ASSERT);
    again.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut told = Told::default();
    loop {
        tokio::select! {
            _ = changes.changed() => sleep(TELL).await,
            _ = again.tick() => {
                let ours: Vec<SessionRow> = sessions.ours().iter().map(row).collect();
                match store.assert_sessions(&ours).await {
                    Ok(0) => {}
                    Ok(_) => told.wants.clear(),
                    Err(error) => tracing::debug!(error = outrider_runtime::tasks::chain(&error), "sessions not told"),
                }
            }
            () = drain.stopping() => return Ok(()),
        }
        if let Err(error) = tell_once(&store, &sessions, &mut told).await {
            tracing::debug!(error = outrider_runtime::tasks::chain(&error), "sessions not told, trying again");
            sleep(TELL * 5).await;
            changes.mark_changed();
        }
    }
}

/// What the other replicas were told, by agent.
#[derive(Default)]
struct Told {
    sessions: BTreeMap<String, SessionRow>,
    /// The stream, and what the program calls.
    wants: BTreeMap<String, (u64, Arc<BTreeSet<ServiceName>>)>,
}

async fn tell_once(store: &Store, sessions: &Sessions, told: &mut Told) -> Result<(), StoreError> {
    let open = sessions.ours();
    let ours: BTreeMap<String, SessionRow> = open.iter().map(|one| (one.agent_id.clone(), row(one))).collect();
    let news = |new: &&SessionRow| {
        told.sessions.get(&new.agent_id).is_none_or(|old| {
            let seen = if new.last_seen - old.last_seen < SEEN { old.last_seen } else { new.last_seen };
            SessionRow { last_seen: seen, ..(*new).clone() } != *old
        })
    };
    let changed: Vec<SessionRow> = ours.values().filter(news).cloned().collect();
    let gone: Vec<(String, u64)> = told
        .sessions
        .values()
        .filter(|old| !ours.contains_key(&old.agent_id))
        .map(|old| (old.agent_id.clone(), old.epoch))
        .collect();
    // They change seldom: a row that is told again and again does not carry them along.
    let other = |one: &&Session| match told.wants.get(&one.agent_id) {
        Some((epoch, wants)) => *epoch != one.epoch || *wants != one.wants,
        None => !one.wants.is_empty(),
    };
    let wanting: Vec<&Session> = open.iter().filter(other).collect();
    if !changed.is_empty() || !gone.is_empty() || !wanting.is_empty() {
        let wants: Vec<WantsRow> = wanting.iter().map(|one| wants(one)).collect();
        store.tell_sessions(&changed, &wants, &gone).await?;
        for (agent, _) in &gone {
            told.sessions.remove(agent);
            told.wants.remove(agent);
        }
        told.wants.extend(wanting.iter().map(|one| (one.agent_id.clone(), (one.epoch, Arc::clone(&one.wants)))));
        told.sessions.extend(changed.into_iter().map(|row| (row.agent_id.clone(), row)));
    }
    Ok(())
}

fn wants(session: &Session) -> WantsRow {
    let services: Vec<&str> = session.wants.iter().map(ServiceName::as_str).collect();
    WantsRow { agent_id: session.agent_id.clone(), epoch: session.epoch, services: services.join(" ") }
}

fn row(session: &Session) -> SessionRow {
    SessionRow {
        agent_id: session.agent_id.clone(),
        epoch: session.epoch,
        in_force: session.in_force,
        refused: session.refused.clone(),
        considered: session.considered,
        answering: session.answering,
        serial: session.serial.clone(),
        certificate_end: session.certificate_end,
        last_seen: session.last_seen,
    }
}

/// Learns what agents say to the other replicas, and passes on what others want of agents here, until drain.
pub(crate) async fn learn(store: Store, mesh: Mesh, drain: Drain) -> Result<(), std::convert::Infallible> {
    let mut hints = store.hints.sessions.subscribe();
    let mut ask = interval(ASK);
    ask.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut known = Wanted::new();
    loop {
        tokio::select! {
            _ = ask.tick() => {}
            _ = hints.changed() => sleep(TELL / 2).await,
            () = drain.stopping() => return Ok(()),
        }
        hints.mark_unchanged();
        if let Err(error) = learn_once(&store, &mesh, &mut known).await {
            tracing::debug!(error = outrider_runtime::tasks::chain(&error), "other replicas' sessions not read, trying again");
        }
    }
}

/// What agents elsewhere call, as it was read and as it was understood.
type Wanted = BTreeMap<String, (String, Arc<BTreeSet<ServiceName>>)>;

async fn learn_once(store: &Store, mesh: &Mesh, known: &mut Wanted) -> Result<(), StoreError> {
    let rows = store.other_sessions().await?;
    let understood = |(agent, text): (String, String)| {
        let names = || text.split(' ').filter_map(|name| name.parse().ok()).collect::<BTreeSet<ServiceName>>();
        let before = known.get(&agent).filter(|(before, _)| *before == text);
        let wants = before.map_or_else(|| Arc::new(names()), |(_, wants)| Arc::clone(wants));
        (agent, (text, wants))
    };
    *known = store.other_wants().await?.into_iter().map(understood).collect();
    let world = Arc::clone(&mesh.world.borrow());
    let session = |row: SessionRow| {
        let agent = world.agents.get(&row.agent_id)?;
        Some(Session {
            agent_id: row.agent_id,
            epoch: row.epoch,
            identity: agent.identity.to_string(),
            version: agent.version.clone(),
            targets: targets_of(agent).into(),
            namespace: agent.identity.namespace().unwrap_or_default().to_owned(),
            wants: known.get(&agent.id).map(|(_, wants)| Arc::clone(wants)).unwrap_or_default(),
            in_force: row.in_force,
            refused: row.refused,
            considered: row.considered,
            answering: row.answering,
            serial: row.serial,
            certificate_end: row.certificate_end,
            last_seen: row.last_seen,
            commands: None,
        })
    };
    mesh.sessions.learn(rows.into_iter().filter_map(session).collect());
    for agent in store.take_renewals().await? {
        mesh.sessions.command(&agent, Command::Renew);
    }
    Ok(())
}
