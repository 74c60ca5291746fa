//! Whoever changed something is on record as surely as the change is.

use super::{
    super::{Deed, OperatorRow},
    *,
};

fn deed<'a>(author: &'a Author, call: &'a str, subject: &'a str) -> Deed<'a> {
    Deed { author, call, subject }
}

fn ann() -> Author {
    Author::new("spiffe://mesh.internal/operator/ann".to_owned(), "admin", "192.0.2.1:9".to_owned())
}

fn root(id: &str) -> CaRow {
    CaRow { id: id.to_owned(), role: Role::Root, certificate: vec![1], key: zeroize::Zeroizing::new(vec![2]) }
}

/// One change of each kind that makes something; whether each is stored.
async fn make(store: &Store, kek: &Kek) -> Vec<bool> {
    let ann = &ann();
    let put = Written { puts: vec![("shop".into(), "a".into(), "{}".into())], deletes: Vec::new() };
    let gone = RevocationRow {
        subject: "aa".into(),
        identity: identity().to_string(),
        reason: "stolen".into(),
        created: 1,
        ends: Some(100),
    };
    let token = TokenRow { identity: identity(), expires: 100, used_at: None, root: "old".to_owned() };
    let bob = OperatorRow { name: "bob".into(), role: "viewer".into(), created: 1, login_expires: 100 };
    vec![
        store.write_policies(&put, u64::MAX, deed(ann, "Apply", "shop/a"), 1).await.is_ok(),
        store.revoke(&gone, ann).await.is_ok(),
        store.put_token(&[1; 32], &token, &[], ann, 1).await.is_ok(),
        store.put_operator(&bob, &[2; 32], ann).await.is_ok(),
        store.begin_rotation(&root("new"), (Phase::Prepared, false), kek, ann, 1).await.is_ok(),
        store.take_revision(deed(ann, "Canary", "tries shop/b"), 1).await.is_ok(),
        store.ask_renewals(&["a1".to_owned()], deed(ann, "RotateCertificates", "*"), 1).await.is_ok(),
    ]
}

/// One change of each kind that takes something back, or on.
async fn unmake(store: &Store) -> Vec<bool> {
    let ann = &ann();
    let delete = Written { puts: Vec::new(), deletes: vec![("shop".into(), "a".into())] };
    let lease = store.take_lease("ca-rotation", Duration::from_secs(60)).await.unwrap().unwrap();
    let mut done = vec![
        store.write_policies(&delete, u64::MAX, deed(ann, "Delete", "shop/a"), 2).await.is_ok(),
        store.unrevoke("aa", ann, 2).await.is_ok(),
        store.revoke_tokens(identity().as_str(), ann, 2).await.is_ok(),
        store.remove_operator("bob", ann, 2).await.is_ok(),
        store.aim_rotation(Phase::Done, true, ann, 2).await.is_ok(),
    ];
    let row = store.rotation().await.unwrap().unwrap();
    done.push(store.advance_rotation(&lease, &row, 2).await.is_ok());
    let row = store.rotation().await.unwrap().unwrap();
    done.push(store.abort_rotation(&row, ann, 2).await.is_ok());
    done
}

/// What there is of each kind.
async fn there(store: &Store) -> (u64, i64, i64, i64, i64, i64, i64) {
    (
        store.revision().await.unwrap(),
        store.count("SELECT count(*) FROM policies").await,
        store.count("SELECT count(*) FROM revocations").await,
        store.count("SELECT count(*) FROM tokens").await,
        store.count("SELECT count(*) FROM operators").await,
        store.count("SELECT count(*) FROM ca_rotation WHERE phase = 'prepared' AND goal = 'prepared'").await,
        store.count("SELECT count(*) FROM ca_keys WHERE id = 'new'").await,
    )
}

on_both! {
    #[tokio::test]
    async fn no_change_is_stored_without_its_entry_and_the_entry_names_who_made_it(place) {
        let (store, _claim, kek) = place.try_open_as("solo").await.unwrap();
        store.found(&root("old"), &kek, 1).await.unwrap();
        let before = there(&store).await;
        store.meddle("ALTER TABLE audit_log RENAME TO away").await;
        assert_eq!(make(&store, &kek).await, [false; 7], "none without an entry");
        assert_eq!(there(&store).await, before);
        store.meddle("ALTER TABLE away RENAME TO audit_log").await;
        assert_eq!(make(&store, &kek).await, [true; 7]);
        let made = there(&store).await;
        assert_eq!(made, (3, 1, 1, 1, 1, 1, 1));
        store.meddle("ALTER TABLE audit_log RENAME TO away").await;
        assert_eq!(unmake(&store).await, [false; 7], "none without an entry");
        assert_eq!(there(&store).await, made);
        store.meddle("ALTER TABLE away RENAME TO audit_log").await;
        assert_eq!(unmake(&store).await, [true; 7]);

        let entries = store.audit_log(0, 100).await.unwrap();
        assert!(entries.iter().all(|one| one.outcome == "ok"));
        let text = |one: &crate::store::AuditRow| format!("{} {} {} {}", one.who.rsplit('/').next().unwrap(), one.call, one.revision, one.subject);
        let web = identity();
        let wanted = [
            "ann Apply 1 shop/a".to_owned(),
            "ann Revoke 2 aa: stolen".to_owned(),
            format!("ann CreateToken 0 {web}"),
            "ann CreateOperator 0 bob as viewer".to_owned(),
            "ann RotateCa 2 prepared, to prepared".to_owned(),
            "ann Canary 3 tries shop/b".to_owned(),
            "ann RotateCertificates 0 *".to_owned(),
            "ann Delete 4 shop/a".to_owned(),
            "ann Unrevoke 5 aa".to_owned(),
            format!("ann RevokeTokens 0 {web}"),
            "ann RemoveOperator 0 bob".to_owned(),
            "ann RotateCa 0 to done, skipping whoever is away".to_owned(),
            "control plane RotateCa 6 distributing".to_owned(),
            "ann RotateCa 7 aborted".to_owned(),
        ];
        assert_eq!(entries.iter().rev().map(text).collect::<Vec<_>>(), wanted);
        let changed = store.policy_revisions(10).await.unwrap();
        let by: Vec<_> = changed.iter().map(|one| (one.revision, one.call.as_str(), one.who.as_str())).collect();
        assert_eq!(by, [(4, "Delete", ann().who.as_str()), (1, "Apply", ann().who.as_str())]);
    }

    #[tokio::test]
    async fn whether_a_call_has_its_entry_is_known_when_its_change_is_stored_and_not_before(place) {
        let (store, _claim) = place.open().await;
        let (early, late) = (ann(), ann());
        let put = Written { puts: vec![("shop".into(), "a".into(), "{}".into())], deletes: Vec::new() };
        store.write_policies(&put, u64::MAX, deed(&early, "Apply", "shop/a"), 1).await.unwrap();
        let overtaken = store.write_policies(&put, 0, deed(&late, "Apply", "shop/a"), 1).await;
        assert!(matches!(overtaken, Err(StoreError::Overtaken)), "{overtaken:?}");
        assert!(early.has_entered() && !late.has_entered());
        store.log_call(deed(&late, "Apply", "shop/a"), "aborted", 1).await.unwrap();
        let outcomes: Vec<_> = store.audit_log(0, 9).await.unwrap().into_iter().map(|one| one.outcome).collect();
        assert_eq!(outcomes, ["aborted", "ok"]);
    }
}

#[tokio::test]
async fn who_changed_policies_before_authors_were_named_is_kept_as_it_was_known() {
    for (place, mark) in
        [(Place::sqlite(), "PRAGMA user_version = 9"), (Place::postgres(), "UPDATE outrider_schema SET version = 9")]
    {
        let (store, claim) = place.open().await;
        let put = Written { puts: vec![("shop".into(), "a".into(), "{}".into())], deletes: Vec::new() };
        let (local, ann) = (Author::local(), ann());
        store.write_policies(&put, u64::MAX, deed(&local, "Apply", "shop/a"), 1).await.unwrap();
        store.write_policies(&put, u64::MAX, deed(&ann, "Apply", "shop/a"), 2).await.unwrap();
        // As the version before left it: it knew user ids only, and 65534 was whoever came from elsewhere.
        for step in [
            "DROP TABLE ca_handovers",
            "ALTER TABLE sessions DROP COLUMN wants",
            "ALTER TABLE audit ADD COLUMN uid BIGINT NOT NULL DEFAULT 1000",
            "UPDATE audit SET uid = 65534 WHERE revision = 2",
            "ALTER TABLE audit DROP COLUMN who",
            mark,
        ] {
            store.meddle(step).await;
        }
        store.close().await.unwrap();
        drop(claim);
        let (store, _claim) = place.open().await;
        let who: Vec<String> = store.policy_revisions(9).await.unwrap().into_iter().map(|one| one.who).collect();
        assert_eq!(who, ["an operator", "uid 1000"]);
    }
}
