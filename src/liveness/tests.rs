//! The poller under tokio's paused time.
#![allow(clippy::unwrap_used)]

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::*;
use crate::provider::{ProviderError, Verdict};

/// The runtime's own clock, which the tests stop and turn.
struct TestClock(Instant);

#[async_trait]
impl Clock for TestClock {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }
    async fn sleep_until(&self, moment: Duration) {
        tokio::time::sleep_until(self.0 + moment).await;
    }
}

#[derive(Clone, Copy)]
enum Play {
    Say(Verdict),
    /// Answers live after a time.
    Slow(Duration),
    Hang,
    Panic,
}

/// Plays its list, then says live for ever.
struct Script(Mutex<VecDeque<Play>>);

#[async_trait]
impl Probe for Script {
    async fn probe(&self) -> Result<Option<String>, ProviderError> {
        let play = self.0.lock().unwrap().pop_front().unwrap_or(Play::Say(Verdict::Live));
        match play {
            Play::Say(Verdict::Live) => Ok(Some("request".to_owned())),
            Play::Say(verdict) => Err(ProviderError {
                verdict,
                code: "Code".to_owned(),
                message: "message".to_owned(),
                request_id: Some("request".to_owned()),
            }),
            Play::Slow(span) => {
                tokio::time::sleep(span).await;
                Ok(None)
            }
            Play::Hang => std::future::pending().await,
            Play::Panic => panic!("inside the client"),
        }
    }
}

fn start(plays: &[Play]) -> (PollHandle, mpsc::Receiver<Answer>, tokio::task::JoinHandle<()>) {
    let script = Arc::new(Script(Mutex::new(plays.iter().copied().collect())));
    let (sender, receiver) = mpsc::channel(16);
    let pace = Pace::new(Duration::from_secs(8), Duration::from_secs(60)).unwrap();
    let (handle, task) = spawn(script, Arc::new(TestClock(Instant::now())), pace, sender);
    (handle, receiver, task)
}

fn within(answer: &Answer, from: f64, to: f64) {
    let asked = answer.asked.as_secs_f64();
    assert!((from..=to).contains(&asked), "asked at {asked}, wanted {from} to {to}: {answer:?}");
}

#[tokio::test(start_paused = true)]
async fn live_answers_come_at_the_interval_and_never_later() {
    let (_handle, mut answers, _) = start(&[]);
    let mut before = answers.recv().await.unwrap();
    within(&before, 0.0, 0.01);
    assert_eq!((before.verdict, before.request_id.as_deref()), (Verdict::Live, Some("request")));
    let mut spans = Vec::new();
    for _ in 0..200 {
        let answer = answers.recv().await.unwrap();
        let span = (answer.asked - before.asked).as_secs_f64();
        assert!((7.19..=8.01).contains(&span), "{span}");
        spans.push((span * 1000.0) as u64);
        before = answer;
    }
    spans.sort_unstable();
    spans.dedup();
    assert!(spans.len() > 20, "no jitter: {spans:?}");
}

#[tokio::test(start_paused = true)]
async fn a_first_denial_is_confirmed_at_once_and_later_ones_are_not() {
    let no = Play::Say(Verdict::Denied);
    let (_handle, mut answers, _) = start(&[no, no, no, Play::Say(Verdict::Live), no, no]);
    let (first, second) = (answers.recv().await.unwrap(), answers.recv().await.unwrap());
    assert_eq!((first.verdict, first.confirms, first.code.as_deref()), (Verdict::Denied, false, Some("Code")));
    assert!(second.confirms && second.asked - first.at < Duration::from_millis(10), "{second:?}");
    let third = answers.recv().await.unwrap();
    assert!(!third.confirms);
    within(&third, 7.1, 8.1);
    let live = answers.recv().await.unwrap();
    assert_eq!(live.verdict, Verdict::Live);
    let (again, confirm) = (answers.recv().await.unwrap(), answers.recv().await.unwrap());
    assert!(!again.confirms && confirm.confirms && confirm.asked - again.at < Duration::from_millis(10));
}

#[tokio::test(start_paused = true)]
async fn an_unreachable_service_is_asked_more_often() {
    let gone = Play::Say(Verdict::Unreachable);
    let (_handle, mut answers, _) = start(&[gone, Play::Say(Verdict::Misconfigured), Play::Say(Verdict::Live)]);
    within(&answers.recv().await.unwrap(), 0.0, 0.01);
    within(&answers.recv().await.unwrap(), 1.79, 2.01);
    within(&answers.recv().await.unwrap(), 3.58, 4.02);
    within(&answers.recv().await.unwrap(), 10.7, 12.03);
}

#[tokio::test(start_paused = true)]
async fn a_hung_service_is_unreachable_at_the_deadline() {
    let (_handle, mut answers, _) = start(&[Play::Hang, Play::Slow(Duration::from_secs(4)), Play::Panic]);
    let hung = answers.recv().await.unwrap();
    assert_eq!((hung.verdict, hung.code.as_deref()), (Verdict::Unreachable, Some("ProbeTimeout")));
    assert!(hung.latency() >= Duration::from_secs(5) && hung.latency() < Duration::from_millis(5020), "{hung:?}");
    let slow = answers.recv().await.unwrap();
    assert_eq!(slow.verdict, Verdict::Live);
    // The deadline was longer than the fast interval: the next one followed at once.
    within(&slow, 5.0, 5.2);
    let panicked = answers.recv().await.unwrap();
    assert_eq!((panicked.verdict, panicked.code.as_deref()), (Verdict::Unreachable, Some("ProbePanicked")));
    assert_eq!(answers.recv().await.unwrap().verdict, Verdict::Live);
}

#[tokio::test(start_paused = true)]
async fn a_probe_out_of_turn_comes_at_once_but_a_storm_is_spaced() {
    let (handle, mut answers, _) = start(&[]);
    within(&answers.recv().await.unwrap(), 0.0, 0.01);
    tokio::time::sleep(Duration::from_secs(3)).await;
    (0..1000).for_each(|_| handle.probe_now());
    within(&answers.recv().await.unwrap(), 3.0, 3.02);
    handle.probe_now();
    within(&answers.recv().await.unwrap(), 3.09, 3.15);
    handle.probe_by(Duration::from_millis(4_500));
    handle.probe_by(Duration::from_secs(6));
    within(&answers.recv().await.unwrap(), 4.49, 4.52);
    within(&answers.recv().await.unwrap(), 11.6, 12.53);
}

#[tokio::test(start_paused = true)]
async fn a_wish_during_a_probe_asks_again_after_it() {
    let (handle, mut answers, _) = start(&[Play::Slow(Duration::from_secs(2))]);
    tokio::time::sleep(Duration::from_secs(1)).await;
    handle.probe_now();
    assert_eq!(answers.recv().await.unwrap().at.as_secs(), 2);
    within(&answers.recv().await.unwrap(), 2.0, 2.2);
}

#[tokio::test(start_paused = true)]
async fn it_ends_with_its_handles_or_its_receiver() {
    let (handle, mut answers, task) = start(&[]);
    answers.recv().await.unwrap();
    drop(handle);
    task.await.unwrap();
    // Also out of a probe that hangs, without waiting for its deadline.
    let (_handle, answers, task) = start(&[Play::Hang]);
    tokio::time::sleep(Duration::from_millis(10)).await;
    drop(answers);
    tokio::time::timeout(Duration::from_secs(1), task).await.unwrap().unwrap();
}

#[tokio::test]
async fn the_clock_of_the_kernel_wakes_in_time() {
    let clock = BootClock;
    let start = clock.now();
    clock.sleep_until(start + Duration::from_millis(60)).await;
    let slept = clock.now() - start;
    assert!(slept >= Duration::from_millis(60) && slept < Duration::from_secs(5), "{slept:?}");
    clock.sleep_until(start).await;
    let up = std::fs::read_to_string("/proc/uptime").unwrap();
    let up: f64 = up.split(' ').next().unwrap().parse().unwrap();
    assert!((clock.now().as_secs_f64() - up).abs() < 60.0);
}
