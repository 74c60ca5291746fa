use proptest::prelude::*;

use super::*;

const NOW: Duration = Duration::from_secs(1000);

fn balancer(near: &[bool]) -> Balancer<usize> {
    let mut balancer = Balancer::default();
    balancer.update(Duration::ZERO, near.iter().copied().enumerate(), |_| Rc::default());
    balancer
}

fn shares(balancer: &Balancer<usize>, now: Duration, requests: usize) -> Vec<usize> {
    let mut counts = vec![0; balancer.places().len()];
    let mut random = fastrand::Rng::with_seed(7);
    for _ in 0..requests {
        let chosen = balancer.choose(now, &[], usize::MAX, |below| random.usize(..below)).unwrap();
        let at = balancer.places().iter().position(|place| Rc::ptr_eq(place, &chosen)).unwrap();
        counts[at] += 1;
    }
    counts
}

#[test]
fn latencies_are_compared_in_powers_of_two() {
    for (number, power) in [(1.0, 1.0), (1.41, 1.0), (1.42, 2.0), (2.8, 2.0), (2.9, 4.0), (1000.0, 1024.0), (1e9, 2_f64.powi(30))]
    {
        assert!(nearest_power_of_two(number) == power && number.log2().round().exp2() == power, "{number}");
    }
}

#[test]
fn equal_endpoints_get_equal_shares_and_a_slow_one_gets_less() {
    let all = balancer(&[false; 4]);
    assert!(shares(&all, NOW, 4000).iter().all(|count| (800..1200).contains(count)));
    for (at, place) in all.places().iter().enumerate() {
        place.answered(NOW, Duration::from_millis(if at == 2 { 200 } else { 2 }));
    }
    let counts = shares(&all, NOW, 4000);
    assert!(counts[2] < 120, "the better of two is the slow one only where it is tried out: {}", counts[2]);
    all.places().iter().filter(|place| place.what != 2).for_each(|place| place.load.set(200));
    assert!(shares(&all, NOW, 4000)[2] > 1500, "an idle slow one beats a quick one with a long queue");
}

#[test]
fn an_endpoint_that_comes_to_others_begins_slowly() {
    let mut all = balancer(&[false; 3]);
    all.places().iter().for_each(|place| place.load.set(3));
    let joined = Duration::from_secs(100);
    all.update(joined, (0..4).map(|what| (what, false)), |_| Rc::new(Cell::new(3)));
    let share = |after: u64| shares(&all, joined + Duration::from_secs(after), 4000)[3];
    assert!(share(0) < 120);
    assert!(share(10) > 800);
    let loads = |load| all.places().iter().for_each(|place| place.load.set(if place.what == 3 { load } else { 3 }));
    loads(0);
    assert!(shares(&all, joined + Duration::from_secs(5), 4000)[3] > 800, "half its share after half the time");
}

#[test]
fn those_that_stay_keep_what_is_known_of_them() {
    let mut all = balancer(&[false; 2]);
    all.places()[0].answered(NOW, Duration::from_secs(1));
    let before = all.places()[0].clone();
    all.update(NOW, [(5, false), (0, false)], |_| Rc::default());
    assert!(Rc::ptr_eq(&before, &all.places()[1]));
    assert_eq!(all.places().len(), 2);
}

#[test]
fn the_own_zone_is_preferred_while_enough_of_it_is_healthy() {
    let all = balancer(&[true, true, true, false, false, false]);
    let far = |now| shares(&all, now, 600)[3..].iter().sum::<usize>();
    assert_eq!(far(NOW), 0);
    for _ in 0..5 {
        all.note(&all.places()[0], Outcome::Failed, NOW);
    }
    assert!(far(NOW) > 100, "two of three are not enough");
    assert_eq!(shares(&all, NOW, 600)[0], 0);
    assert_eq!(far(NOW + Duration::from_secs(11)), 0, "the ejection is over");
}

#[test]
fn a_request_is_not_sent_twice_to_one_endpoint_while_there_are_others() {
    let all = balancer(&[true, false, false]);
    let mut tried = Vec::new();
    for _ in 0..3 {
        tried.push(all.choose(NOW, &tried, usize::MAX, |_| 0).unwrap());
    }
    let mut whats: Vec<usize> = tried.iter().map(|place| place.what).collect();
    whats.sort_unstable();
    assert_eq!(whats, [0, 1, 2]);
    assert!(all.choose(NOW, &tried, usize::MAX, |_| 0).is_ok(), "then any of them");
}

#[test]
fn full_endpoints_are_passed_over_and_all_full_is_overload() {
    let all = balancer(&[false; 3]);
    all.places().iter().for_each(|place| place.load.set(10));
    assert_eq!(all.choose(NOW, &[], 10, |_| 0).unwrap_err(), Nobody::Overloaded);
    all.places()[1].load.set(9);
    assert_eq!(all.choose(NOW, &[], 10, |_| 0).unwrap().what, 1);
    assert_eq!(balancer(&[]).choose(NOW, &[], 10, |_| 0).unwrap_err(), Nobody::NoEndpoint);
}

#[test]
fn an_endpoint_with_a_worse_record_than_the_others_is_ejected() {
    let all = balancer(&[false; 4]);
    for number in 0..100 {
        for place in all.places() {
            let outcome = if place.what == 1 && number % 2 == 0 { Outcome::Failed } else { Outcome::Served };
            all.note(place, outcome, NOW);
        }
    }
    assert_eq!((all.compare(NOW), all.ejected(NOW)), (1, 1));
    assert_eq!(shares(&all, NOW, 400)[1], 0);
}

proptest! {
    #[test]
    fn whatever_fails_never_more_than_the_share_is_ejected_and_somebody_is_chosen(
        count in 1usize..12,
        steps in prop::collection::vec((0usize..12, any::<bool>(), any::<bool>(), 0u64..3000), 0..300),
    ) {
        let all = balancer(&vec![false; count]);
        let mut now = NOW;
        for (at, failed, compare, pause) in steps {
            now += Duration::from_millis(pause);
            let place = &all.places()[at % count];
            all.note(place, if failed { Outcome::Failed } else { Outcome::Served }, now);
            if compare {
                all.compare(now);
            }
            prop_assert!(all.ejected(now) * 100 <= count * MOST_EJECTED);
            let chosen = all.choose(now, &[], usize::MAX, |below| at % below).unwrap();
            prop_assert!(!chosen.is_ejected(now), "half of them are healthy: no panic");
        }
    }

    #[test]
    fn with_most_of_them_sick_all_are_used(count in 2usize..12, sick in 1usize..12) {
        let all = balancer(&vec![false; count]);
        let sick = sick.min(count);
        all.places().iter().take(sick).for_each(|place| all.set_sick(place, true));
        let counts = shares(&all, NOW, 200 * count);
        let panic = (count - sick) * 100 < count * PANIC;
        prop_assert_eq!(counts.iter().take(sick).all(|count| *count > 0), panic);
    }
}
