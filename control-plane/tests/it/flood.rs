//! A flood of requests for certificates from one identity does not slow the others down.

use std::{sync::Arc, time::Duration};

use outrider_proto::v1::identity_client::IdentityClient;
use rcgen::KeyPair;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep},
};
use tonic::Code;

use crate::harness::{Plane, Svid, by_renewal, csr};

/// Renewals of a calm identity, over one connection, each timed.
async fn renewals(plane: &Plane, svid: &Svid, count: usize) -> Vec<Duration> {
    let mut client = IdentityClient::new(plane.connect(Some(svid)).await.unwrap());
    let request = csr(&KeyPair::generate().unwrap(), |_| {});
    let mut times = Vec::new();
    for _ in 0..count {
        let began = Instant::now();
        client.issue(by_renewal(request.clone())).await.unwrap();
        times.push(began.elapsed());
        sleep(Duration::from_millis(20)).await;
    }
    times.sort();
    times
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_from_one_identity_leaves_the_others_their_pace() {
    let plane = Arc::new(Plane::start().await);
    let (loud, calm) = (Arc::new(plane.join("shop/loud", &[]).await), plane.join("shop/calm", &[]).await);
    let before = renewals(&plane, &calm, 60).await;

    // A thousand a second for as long as the calm one is looked at.
    let (end, ending) = watch::channel(false);
    let mut flood = JoinSet::new();
    for _ in 0..10 {
        let (plane, loud, ending) = (plane.clone(), loud.clone(), ending.clone());
        flood.spawn(async move {
            let client = IdentityClient::new(plane.connect(Some(&loud)).await.unwrap());
            let request = csr(&KeyPair::generate().unwrap(), |_| {});
            let (mut asked, mut refused) = (0_u32, 0_u32);
            while !*ending.borrow() {
                let mut client = client.clone();
                asked += 1;
                match client.issue(by_renewal(request.clone())).await {
                    Ok(_) => {}
                    Err(status) => refused += u32::from(status.code() == Code::ResourceExhausted),
                }
                sleep(Duration::from_millis(10)).await;
            }
            (asked, refused)
        });
    }
    let during = renewals(&plane, &calm, 60).await;
    end.send_replace(true);
    let (mut asked, mut refused) = (0, 0);
    while let Some(counts) = flood.join_next().await {
        let (one, two) = counts.unwrap();
        (asked, refused) = (asked + one, refused + two);
    }
    assert!(asked > 300 && refused > asked / 4, "{asked} asked, {refused} refused");
    // Of sixty the slowest but one: the tests' machine has other things to do.
    let (quiet, loud) = (before[58], during[58]);
    assert!(loud <= (quiet * 2).max(Duration::from_millis(60)), "{quiet:?} before, {loud:?} during the flood of {asked}");
}
