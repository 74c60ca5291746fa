use std::{process::Command, time::Duration};

use outrider_policy::{SpiffeId, TrustDomain};
use tempfile::TempDir;

use super::{
    Author, Backend, CaRow, CertificateRow, Claim, DecisionRow, Deed, Kek, OpenError, OpenTokens, PostgresUrl, Redeem, Replica,
    RevocationRow, Role, Store, StoreError, TokenRow, Written, sql::sql,
};
use crate::{ca::Phase, config::KeySource};

mod migrating;
#[expect(dead_code, unreachable_pub, reason = "other tests use the rest of it")]
#[path = "../../../../tests/src/postgres.rs"]
mod postgres;

/// A place for a store: a state directory, and a database where that is elsewhere.
struct Place {
    dir: TempDir,
    backend: Backend,
}

impl Place {
    fn sqlite() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), backend: Backend::Sqlite }
    }

    fn postgres() -> Self {
        let url = postgres::Cluster::shared().database();
        Self { dir: tempfile::tempdir().unwrap(), backend: Backend::Postgres(PostgresUrl::parse(&url).unwrap()) }
    }

    async fn open(&self) -> (Store, Claim) {
        self.open_as("solo").await
    }

    async fn open_as(&self, replica: &str) -> (Store, Claim) {
        let (store, claim, _) = self.try_open_as(replica).await.unwrap();
        (store, claim)
    }

    async fn try_open_as(&self, replica: &str) -> Result<(Store, Claim, Kek), OpenError> {
        // SQLite is for one process: a second replica there is the same file by another name.
        let home = if self.backend == Backend::Sqlite { "state" } else { replica };
        let claim = Claim::new(&self.dir.path().join(home)).unwrap();
        let key = KeySource::File(self.dir.path().join("key"));
        let domain = TrustDomain::new("mesh.internal").unwrap();
        let (store, kek) = Store::open_as(&claim, &self.backend, Replica::starting(replica, "home"), &domain, &key).await?;
        Ok((store, claim, kek))
    }
}

#[tokio::test]
async fn a_lease_of_a_clock_that_was_far_ahead_keeps_nobody_out_after_a_restart() {
    let place = Place::sqlite();
    let (store, claim) = place.open().await;
    store.take_lease("task", Duration::from_secs(86_400)).await.unwrap().unwrap();
    store.close().await.unwrap();
    drop((store, claim));
    let (store, _claim) = place.open().await;
    let lease = store.take_lease("task", Duration::from_secs(8)).await.unwrap().unwrap();
    assert_eq!(lease.token(), 2, "and a write of before is told apart");
}

/// Each promise for each database.
macro_rules! on_both {
    ($(#[$test:meta] async fn $name:ident($place:ident) $body:block)*) => {
        mod on_sqlite {
            use super::*;
            $(#[$test] async fn $name() { let $place = Place::sqlite(); $body })*
        }
        mod on_postgres {
            use super::*;
            $(#[$test] async fn $name() { let $place = Place::postgres(); $body })*
        }
    };
}

mod audit;
mod handovers;

fn decision(request: usize, denied: bool) -> DecisionRow {
    DecisionRow { request_id: format!("r{request}"), destination: "shop/orders".into(), denied, record: vec![u8::from(denied)] }
}

fn identity() -> SpiffeId {
    SpiffeId::new("spiffe://mesh.internal/ns/shop/sa/web").unwrap()
}

async fn token(store: &Store, number: u8) {
    let row = TokenRow { identity: identity(), expires: 100, used_at: None, root: "old".to_owned() };
    store.put_token(&[number; 32], &row, &["shop/web".parse().unwrap()], &Author::local(), 1).await.unwrap();
}

fn leaf(serial: &str) -> CertificateRow {
    CertificateRow {
        serial: serial.to_owned(),
        identity: identity().to_string(),
        not_before: 0,
        not_after: 100,
        evidence: "join-token".to_owned(),
        issuer: "ca".to_owned(),
        agent_id: String::new(),
        replaced_by: None,
        replica: "solo".to_owned(),
        root: String::new(),
    }
}

on_both! {
    #[tokio::test]
    async fn the_ring_of_decisions_drops_old_allows_first_and_denials_last(place) {
        let (store, _claim) = place.open().await;
        let batch: Vec<DecisionRow> = (0..100).map(|request| decision(request, request % 4 == 0)).collect();
        store.put_decisions(&batch).await.unwrap();
        let lease = store.take_lease("prune", Duration::from_secs(60)).await.unwrap().unwrap();
        assert_eq!(store.prune_decisions(&lease, 50, i64::MAX).await.unwrap(), 50);
        let denials = store.decisions(1000, true, "").await.unwrap().len();
        assert_eq!((denials, store.decisions(1000, false, "").await.unwrap().len()), (25, 50));
        assert!(store.decisions_of("r1").await.unwrap().is_empty(), "the oldest allow is gone");
        store.prune_decisions(&lease, 10, i64::MAX).await.unwrap();
        assert_eq!(store.decisions(1000, true, "").await.unwrap().len(), 10);
        assert_eq!(store.decisions_of("r96").await.unwrap().len(), 1, "the newest denial stays");
    }

    #[tokio::test]
    async fn the_ring_is_bounded_in_bytes_too_and_strangers_do_not_push_denials_out(place) {
        let (store, _claim) = place.open().await;
        let sized = |request, denied, stranger: bool| DecisionRow {
            destination: if stranger { String::new() } else { "shop/orders".to_owned() },
            record: vec![0; 1000],
            ..decision(request, denied)
        };
        let rows =
            [sized(0, true, false), sized(1, false, false), sized(2, true, true), sized(3, false, false), sized(4, true, true)];
        store.put_decisions(&rows).await.unwrap();
        let lease = store.take_lease("prune", Duration::from_secs(60)).await.unwrap().unwrap();
        let left = async || {
            let rows: Vec<(String,)> = sql("SELECT request_id FROM decisions ORDER BY seq").all(store.readers()).await.unwrap();
            rows.into_iter().map(|(id,)| id).collect::<Vec<_>>()
        };
        assert_eq!(store.prune_decisions(&lease, 100, 4500).await.unwrap(), 1);
        assert_eq!(left().await, ["r0", "r2", "r3", "r4"]);
        assert_eq!(store.prune_decisions(&lease, 100, 2000).await.unwrap(), 2);
        assert_eq!(left().await, ["r0", "r4"], "the last allow, then the older stranger");
        store.prune_decisions(&lease, 1, i64::MAX).await.unwrap();
        assert_eq!(left().await, ["r0"], "the denial of a known caller stays longest");
        assert_eq!(store.prune_decisions(&lease, 1, 1000).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn every_write_has_one_revision_of_its_own(place) {
        let (store, _claim) = place.open().await;
        let put = |names: &[&str]| Written {
            puts: names.iter().map(|name| ("shop".to_owned(), (*name).to_owned(), "{}".to_owned())).collect(),
            deletes: Vec::new(),
        };
        assert_eq!(store.write_policies(&put(&["a", "b"]), 0, Deed { author: &Author::local(), call: "Apply", subject: "" }, 1).await.unwrap(), 1);
        assert_eq!(store.write_policies(&put(&["b"]), 1, Deed { author: &Author::local(), call: "Apply", subject: "" }, 1).await.unwrap(), 2);
        let delete = Written { puts: Vec::new(), deletes: vec![("shop".to_owned(), "a".to_owned())] };
        assert_eq!(store.write_policies(&delete, 2, Deed { author: &Author::local(), call: "Delete", subject: "" }, 1).await.unwrap(), 3);
        let (_, rows, _) = store.mesh().await.unwrap();
        assert_eq!(rows.iter().map(|row| (row.name.as_str(), row.revision)).collect::<Vec<_>>(), [("b", 2)]);
        let trail = store.count("SELECT count(*) FROM audit").await;
        assert_eq!((trail, store.revision().await.unwrap()), (4, 3));
    }

    #[tokio::test]
    async fn a_token_that_is_used_up_in_between_leaves_no_certificate_on_record(place) {
        let (store, _claim) = place.open().await;
        token(&store, 1).await;
        store.issued(&leaf("01"), &Redeem::Token([1; 32]), 2).await.unwrap();
        let again = store.issued(&leaf("02"), &Redeem::Token([1; 32]), 3).await;
        assert!(matches!(again, Err(StoreError::TokenUsed)));
        assert!(store.certificate("01").await.unwrap().is_some() && store.certificate("02").await.unwrap().is_none());
        let grants = store.grants(&identity()).await.unwrap();
        assert_eq!(grants.iter().map(ToString::to_string).collect::<Vec<_>>(), ["shop/web"]);
    }

    #[tokio::test]
    async fn of_many_issuances_at_once_each_is_answered_for_itself(place) {
        let (store, _claim) = place.open().await;
        for number in 1..=20 {
            token(&store, number).await;
        }
        // Every token is asked for three times, and one leaf stands there already: it fails alone.
        store.issued(&leaf("taken"), &Redeem::Nothing, 1).await.unwrap();
        let asked = (0..60_u8).map(|number| {
            let store = &store;
            async move { store.issued(&leaf(&format!("{number:02}")), &Redeem::Token([number % 20 + 1; 32]), 2).await }
        });
        let stands = leaf("taken");
        let (answers, taken) =
            tokio::join!(futures_util::future::join_all(asked), store.issued(&stands, &Redeem::Nothing, 1));
        assert!(matches!(taken, Err(StoreError::Shared(_))), "{taken:?}");
        assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 20);
        assert_eq!(answers.iter().filter(|answer| matches!(answer, Err(StoreError::TokenUsed))).count(), 40);
        for (number, answer) in answers.iter().enumerate() {
            assert_eq!(store.certificate(&format!("{number:02}")).await.unwrap().is_some(), answer.is_ok(), "{number}");
        }
        let renewals = (0..20_u8).map(|number| {
            let (store, new) = (&store, format!("n{number:02}"));
            async move { store.issued(&leaf(&new), &Redeem::Certificate(format!("{number:02}")), 3).await }
        });
        assert!(futures_util::future::join_all(renewals).await.iter().all(Result::is_ok));
        let replaced = store.count("SELECT count(*) FROM certificates WHERE replaced_by = 'n' || serial").await;
        assert_eq!(replaced, 20);
        assert_eq!(store.certificate("n07").await.unwrap().unwrap().replica, "solo");
    }

    #[tokio::test]
    async fn a_lease_has_one_holder_and_passes_on_when_it_ends(place) {
        let (first, _claim) = place.open_as("first").await;
        let second = first.as_replica("second");
        let long = Duration::from_secs(60);
        let held = first.take_lease("task", long).await.unwrap().unwrap();
        assert_eq!(second.take_lease("task", long).await.unwrap(), None);
        assert!(second.take_lease("other", long).await.unwrap().is_some(), "leases are independent");
        assert_eq!(first.take_lease("task", Duration::ZERO).await.unwrap().as_ref(), Some(&held), "prolonging keeps the token");
        // It has ended and nobody took it: its writes are still alone.
        first.begin_under(&held).await.unwrap().commit().await.unwrap();
        let passed = second.take_lease("task", long).await.unwrap().unwrap();
        assert_eq!(passed.token(), held.token() + 1);
        assert!(matches!(first.begin_under(&held).await, Err(StoreError::Fenced("task"))));
        assert_eq!(first.take_lease("task", long).await.unwrap(), None);
        second.begin_under(&passed).await.unwrap().commit().await.unwrap();
        second.release_lease(passed).await.unwrap();
        assert!(first.take_lease("task", long).await.unwrap().is_some(), "what was given back can be taken at once");
    }

    #[tokio::test]
    async fn a_second_process_under_one_replica_id_is_noticed(place) {
        let (store, _claim) = place.open_as("same").await;
        assert!(store.heartbeat("a:1").await.unwrap() && store.heartbeat("a:1").await.unwrap());
        let twin = store.as_replica("same");
        assert!(!twin.heartbeat("b:1").await.unwrap());
        store.farewell().await.unwrap();
        assert!(twin.heartbeat("b:1").await.unwrap(), "after a good end the next one may start at once");
        let rows = store.replicas().await.unwrap();
        assert_eq!((rows.len(), rows[0].address.as_str(), rows[0].is_live()), (1, "b:1", true));
    }

    #[tokio::test]
    async fn each_replica_has_its_issuing_ca_and_all_share_the_root(place) {
        let (first, _claim, kek) = place.try_open_as("first").await.unwrap();
        let second = first.as_replica("second");
        let ca = |id: &str, role| CaRow { id: id.to_owned(), role, certificate: vec![1], key: zeroize::Zeroizing::new(vec![2]) };
        first.found(&ca("r1", Role::Root), &kek, 1).await.unwrap();
        second.found(&ca("r2", Role::Root), &kek, 1).await.unwrap();
        let marks = second.root_marks().await.unwrap();
        assert_eq!((marks.len(), marks[0].id.as_str(), marks[0].active), (1, "r1", true), "the first root stays");
        for (store, id, now) in [(&first, "i1", 1), (&second, "i2", 1), (&first, "i3", 2)] {
            assert!(store.put_issuing(&ca(id, Role::Issuing), "r1", &kek, now).await.unwrap());
        }
        assert!(!first.put_issuing(&ca("i4", Role::Issuing), "r2", &kek, 3).await.unwrap(), "there is no such root");
        assert_eq!(first.issuing("r1", &kek).await.unwrap().unwrap().id, "i3");
        assert_eq!(second.issuing("r1", &kek).await.unwrap().unwrap().id, "i2", "another replica's renewal does not erase it");
        assert_eq!(second.root("r1", &kek).await.unwrap().unwrap().id, "r1");
    }

    #[tokio::test]
    async fn a_rotation_goes_from_phase_to_phase_once_each_and_its_revisions_grow(place) {
        let (store, _claim, kek) = place.try_open_as("solo").await.unwrap();
        let ca = |id: &str, role| CaRow { id: id.to_owned(), role, certificate: vec![1], key: zeroize::Zeroizing::new(vec![2]) };
        store.found(&ca("old", Role::Root), &kek, 1).await.unwrap();
        store.put_issuing(&ca("i1", Role::Issuing), "old", &kek, 1).await.unwrap();
        assert!(store.begin_rotation(&ca("new", Role::Root), (Phase::Prepared, true), &kek, &Author::local(), 2).await.unwrap());
        store.aim_rotation(Phase::Done, false, &Author::local(), 2).await.unwrap();
        let lease = store.take_lease("ca-rotation", Duration::from_secs(60)).await.unwrap().unwrap();
        let mut revisions = Vec::new();
        while let Some(row) = store.rotation().await.unwrap().filter(|row| row.phase != row.goal) {
            assert_eq!((row.old_root.as_str(), row.new_root.as_str(), row.skip_away), ("old", "new", false));
            revisions.push(store.advance_rotation(&lease, &row, 3).await.unwrap().unwrap());
            assert_eq!(store.advance_rotation(&lease, &row, 3).await.unwrap(), None, "no step is made twice");
        }
        assert!(revisions.is_sorted() && revisions.len() == 5, "{revisions:?}");
        let marks = store.root_marks().await.unwrap();
        let marks: Vec<_> = marks.iter().map(|mark| (mark.id.as_str(), mark.trusted, mark.active)).collect();
        assert_eq!(marks, [("old", false, false), ("new", true, true)]);
        assert!(store.root("old", &kek).await.unwrap().is_none() && store.issuing("old", &kek).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_leaf_is_put_on_record_only_below_the_root_that_signs_now_and_one_that_is_not_keeps_its_token(place) {
        let (store, _claim, kek) = place.try_open_as("solo").await.unwrap();
        let ca = |id: &str| CaRow { id: id.to_owned(), role: Role::Root, certificate: vec![1], key: zeroize::Zeroizing::new(vec![2]) };
        let of = |serial: &str, root: &str| CertificateRow { root: root.to_owned(), ..leaf(serial) };
        let own = |serial: &str, root: &str| CertificateRow { evidence: "self".to_owned(), ..of(serial, root) };
        store.found(&ca("old"), &kek, 1).await.unwrap();
        store.issued(&of("01", "old"), &Redeem::Nothing, 1).await.unwrap();
        store.begin_rotation(&ca("new"), (Phase::Done, false), &kek, &Author::local(), 2).await.unwrap();
        let lease = store.take_lease("ca-rotation", Duration::from_secs(60)).await.unwrap().unwrap();
        let mut serial = 10;
        let mut step = async || {
            let row = store.rotation().await.unwrap().unwrap();
            store.advance_rotation(&lease, &row, 3).await.unwrap().unwrap();
            serial += 4;
            let (old, new) = (of(&format!("{serial}"), "old"), of(&format!("{}", serial + 1), "new"));
            let (own_old, own_new) = (own(&format!("{}", serial + 2), "old"), own(&format!("{}", serial + 3), "new"));
            let mut taken = Vec::new();
            for row in [old, new, own_old, own_new] {
                taken.push(match store.issued(&row, &Redeem::Nothing, 3).await {
                    Ok(()) => true,
                    Err(StoreError::RootRetired) => false,
                    Err(error) => panic!("{error:?}"),
                });
            }
            (row.phase.next().unwrap(), taken)
        };
        assert_eq!(step().await, (Phase::Distributing, vec![true, false, true, true]));
        assert_eq!(step().await, (Phase::Issuing, vec![false, true, true, true]));
        assert_eq!(step().await, (Phase::Proving, vec![false, true, true, true]));
        assert_eq!(step().await, (Phase::Retiring, vec![false, true, false, true]));
        token(&store, 1).await;
        let late = store.issued(&of("late", "old"), &Redeem::Token([1; 32]), 4).await;
        assert!(matches!(late, Err(StoreError::RootRetired)), "{late:?}");
        store.issued(&of("fresh", "new"), &Redeem::Token([1; 32]), 4).await.unwrap();
        store.issued(&of("theirs", "a root that somebody else makes"), &Redeem::Nothing, 4).await.unwrap();
    }

    #[tokio::test]
    async fn who_may_hold_a_leaf_is_known_and_a_lost_successor_counts_no_more_when_another_came(place) {
        let (store, _claim) = place.open().await;
        token(&store, 1).await;
        let of = |serial: &str, root: &str| CertificateRow { root: root.to_owned(), ..leaf(serial) };
        store.issued(&of("01", "old"), &Redeem::Token([1; 32]), 2).await.unwrap();
        store.holds("01", identity().as_str(), "a1").await.unwrap();
        store.issued(&of("lost", "old"), &Redeem::Certificate("01".into()), 3).await.unwrap();
        let serials = async || store.held(50).await.unwrap().into_iter().map(|row| row.serial).collect::<Vec<_>>();
        assert_eq!(serials().await, ["01", "lost"], "nobody said to hold the successor");
        store.issued(&of("02", "new"), &Redeem::Certificate("01".into()), 4).await.unwrap();
        store.holds("02", identity().as_str(), "a1").await.unwrap();
        assert_eq!(serials().await, ["02"]);
        assert!(store.held(100).await.unwrap().is_empty(), "it has ended");
        token(&store, 2).await;
        let open = store.open_tokens("old", 50).await.unwrap();
        assert_eq!(open, [OpenTokens { identity: identity().to_string(), count: 1, ends: 100 }]);
        assert!(store.open_tokens("new", 50).await.unwrap().is_empty());
        assert_eq!(store.revoke_tokens(identity().as_str(), &Author::local(), 50).await.unwrap(), 1);
        assert!(store.open_tokens("old", 50).await.unwrap().is_empty());
        let late = store.issued(&leaf("03"), &Redeem::Token([2; 32]), 51).await;
        assert!(matches!(late, Err(StoreError::TokenUsed)), "{late:?}");
    }

    #[tokio::test]
    async fn what_is_revoked_is_bounded_undone_and_forgotten_when_the_certificate_ends(place) {
        let (store, _claim) = place.open().await;
        let row = |subject: &str, ends| RevocationRow {
            subject: subject.into(), identity: identity().to_string(), reason: "lost".into(), created: 1, ends,
        };
        let first = store.revoke(&row("aa", Some(10)), &Author::local()).await.unwrap().unwrap();
        let second = store.revoke(&row(identity().as_str(), None), &Author::local()).await.unwrap().unwrap();
        assert!(second > first);
        assert_eq!(store.revocations().await.unwrap().len(), 2);
        assert_eq!(store.prune_revocations(10).await.unwrap(), None);
        assert!(store.prune_revocations(11).await.unwrap().is_some());
        assert!(store.revocations().await.unwrap()[0].is_identity());
        assert!(store.unrevoke(identity().as_str(), &Author::local(), 2).await.unwrap().is_some());
        assert_eq!(store.unrevoke(identity().as_str(), &Author::local(), 2).await.unwrap(), None);
    }

    #[tokio::test]
    async fn what_was_stored_is_there_after_the_store_was_closed(place) {
        let (store, claim) = place.open().await;
        token(&store, 1).await;
        store.close().await.unwrap();
        drop(claim);
        let (store, _claim) = place.open().await;
        assert!(store.token(&[1; 32]).await.unwrap().is_some());
        }
}

#[tokio::test]
async fn a_store_of_a_newer_version_is_refused() {
    for (place, mark) in
        [(Place::sqlite(), "PRAGMA user_version = 99"), (Place::postgres(), "UPDATE outrider_schema SET version = 99")]
    {
        let (first, claim) = place.open().await;
        sql(mark).run(&first.writer).await.unwrap();
        first.close().await.unwrap();
        drop(claim);
        let error = place.try_open_as("solo").await.err().unwrap().to_string();
        assert!(error.contains("schema 99"), "{error}");
    }
}

#[tokio::test]
async fn a_database_of_something_else_is_refused_and_left_as_it_is() {
    let url = postgres::Cluster::shared().database();
    let name = url.rsplit('/').next().unwrap().to_owned();
    postgres::Cluster::shared().sql(&name, "CREATE TABLE customers (id BIGINT)");
    let place = Place { dir: tempfile::tempdir().unwrap(), backend: Backend::Postgres(PostgresUrl::parse(&url).unwrap()) };
    assert!(matches!(place.try_open_as("solo").await, Err(OpenError::Foreign { .. })));
    assert_eq!(postgres::Cluster::shared().sql(&name, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"), "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_start_at_once_on_an_empty_database_make_one_store() {
    let place = Place::postgres();
    let key = KeySource::Given(zeroize::Zeroizing::new([7; 32]));
    let domain = TrustDomain::new("mesh.internal").unwrap();
    let starts = (0..6).map(|number| {
        let (place, key, domain) = (&place, &key, &domain);
        async move {
            let claim = Claim::new(&place.dir.path().join(format!("state{number}"))).unwrap();
            let replica = Replica::starting(&format!("r{number}"), "home");
            let (store, kek) = Store::open_as(&claim, &place.backend, replica, domain, key).await.unwrap();
            let root =
                CaRow { id: format!("r{number}"), role: Role::Root, certificate: vec![], key: zeroize::Zeroizing::new(vec![]) };
            store.found(&root, &kek, 1).await.unwrap();
            store.root_marks().await.unwrap()[0].id.clone()
        }
    });
    let roots = futures_util::future::join_all(starts).await;
    assert!(roots.iter().all(|root| *root == roots[0]), "{roots:?}");
}

#[test]
fn an_address_of_postgres_is_shown_without_its_password_and_asks_for_tls_unless_it_is_near() {
    let url = PostgresUrl::parse("postgres://outrider:s3cret@db1.example:5433,db2.example/mesh?application_name=x").unwrap();
    assert_eq!(url.to_string(), "postgres://db1.example:5433,db2.example/mesh");
    assert!(!format!("{url:?}").contains("s3cret"));
    let options = url.options().unwrap();
    assert_eq!(
        options.iter().map(|one| (one.get_host(), one.get_port())).collect::<Vec<_>>(),
        [("db1.example", 5433), ("db2.example", 5432)]
    );
    assert!(options.iter().all(|one| matches!(one.get_ssl_mode(), sqlx::postgres::PgSslMode::VerifyFull)));
    let near = PostgresUrl::parse("postgres://outrider@127.0.0.1/mesh").unwrap().options().unwrap();
    assert!(matches!(near[0].get_ssl_mode(), sqlx::postgres::PgSslMode::Prefer));
    for wrong in ["mysql://a/b", "postgres://s3cret:pass@[/x", "postgres://h:99999999/x"] {
        let said = PostgresUrl::parse(wrong).unwrap_err();
        assert!(!said.contains("s3cret"), "{said}");
    }
}

/// A file system of one megabyte; `None` where this user may not mount one.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn mount() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m,mode=0700", "tmpfs"]).arg(dir.path()).output();
        mounted.is_ok_and(|mounted| mounted.status.success()).then_some(Self(dir))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a store that still has a file open there lets go of it later.
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).output();
    }
}

#[tokio::test]
async fn a_full_disk_fails_the_writes_that_it_fails_and_no_later_one() {
    let Some(disk) = SmallDisk::mount() else {
        eprintln!("SKIPPED: a full disk cannot be had, this user may not mount one");
        return;
    };
    let claim = Claim::new(&disk.0.path().join("state")).unwrap();
    let key = KeySource::File(disk.0.path().join("key"));
    let (store, _) = Store::open(&claim, &TrustDomain::new("mesh.internal").unwrap(), &key).await.unwrap();
    let put = |bytes: usize| Written {
        puts: vec![("shop".to_owned(), "a".to_owned(), format!("{{\"x\":\"{}\"}}", "x".repeat(bytes)))],
        deletes: Vec::new(),
    };
    store.write_policies(&put(10), u64::MAX, Deed { author: &Author::local(), call: "Apply", subject: "" }, 1).await.unwrap();
    let filler = disk.0.path().join("filler");
    let _ = std::fs::write(&filler, vec![0; 2 << 20]);
    let mut failed = 0;
    for bytes in [10, 100_000, 10, 2000, 50_000, 10] {
        failed += usize::from(
            store
                .write_policies(&put(bytes), u64::MAX, Deed { author: &Author::local(), call: "Apply", subject: "" }, 1)
                .await
                .is_err(),
        );
    }
    assert!(failed > 0, "the disk was not full");
    std::fs::remove_file(&filler).unwrap();
    let before = store.revision().await.unwrap();
    assert_eq!(
        store
            .write_policies(&put(1000), u64::MAX, Deed { author: &Author::local(), call: "Apply", subject: "" }, 1)
            .await
            .unwrap(),
        before + 1
    );
    assert_eq!(
        store.write_policies(&put(10), u64::MAX, Deed { author: &Author::local(), call: "Apply", subject: "" }, 1).await.unwrap(),
        before + 2
    );
    store.close().await.unwrap();
}
