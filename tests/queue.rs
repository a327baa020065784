//! The queue on real nats-servers: the oldest supported version and a current one.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::stream::{RetentionPolicy, StorageType};
use lethe_queue::conformance::{self, SOON, job};
use lethe_queue::nats::{JetStreamQueue, Options, Role};
use lethe_queue::{Delivery, Error, Limits, Queue};
use lethe_shared::fault::{Class, Fault};
use lethe_shared::retry::Transient;
use lethe_tests::nats::{NatsServer, Version};

fn options() -> Options {
    Options { ack_wait: 30, give_up: 20, replicas: 1, ..Options::default() }
}

async fn queue(server: &NatsServer, role: Role, limits: Limits) -> JetStreamQueue {
    JetStreamQueue::connect_with(&server.url(), role, "test", &options(), limits).await.unwrap()
}

async fn admin(server: &NatsServer) -> jetstream::Context {
    jetstream::new(async_nats::connect(server.url()).await.unwrap())
}

/// Returns a queue on a server without streams.
async fn empty(server: &NatsServer, limits: Limits) -> Arc<dyn Queue> {
    let context = admin(server).await;
    for stream in ["LETHE_JOBS", "LETHE_DEAD", "LETHE_LEDGER", "LETHE_LEASES"] {
        // The stream does not exist the first time.
        let _ = context.delete_stream(stream).await;
    }
    Arc::new(queue(server, Role::Coordinator, limits).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_oldest_server_conforms() {
    let server = NatsServer::start(Version::Oldest);
    conformance::check(|limits| empty(&server, limits)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_current_server_conforms() {
    let server = NatsServer::start(Version::Current);
    conformance::check(|limits| empty(&server, limits)).await;
}

/// Tests of JetStream alone, on both servers.
async fn beyond(version: Version) {
    let server = NatsServer::start(version);
    hostile_messages(&server).await;
    replays(&server).await;
    drift(&server).await;
    lost_disk(version).await;
    full_disk(version).await;
    leases(&server).await;
    sweeps(&server).await;
    passed_over(version).await;
    lost_tail(version).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_oldest_server_and_what_can_happen_to_it() {
    beyond(Version::Oldest).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_current_server_and_what_can_happen_to_it() {
    beyond(Version::Current).await;
}

/// Bytes that are not a job become dead letters, and later messages are delivered.
async fn hostile_messages(server: &NatsServer) {
    let queue = queue(server, Role::Coordinator, Limits::default()).await;
    let context = admin(server).await;
    let bodies: [&[u8]; 4] = [
        b"",
        b"LTHE",
        &[0xff; 4096],
        b"LTHE\x01\x00\x02\x00\x00\x00\x05\x00\x00\x00................hello",
    ];
    for (number, body) in bodies.iter().enumerate() {
        let subject = [
            "lethe.jobs.r.concept.abc",
            "lethe.jobs.x",
            "lethe.jobs.a.b.c.d.e.f",
            "lethe.jobs.r.concept.def",
        ][number];
        context.publish(subject, body.to_vec().into()).await.unwrap().await.unwrap();
    }
    queue.publish(&job("hostile", 1)).await.unwrap();
    let delivery = queue.pull(SOON).await.unwrap().unwrap();
    assert_eq!(delivery.job, job("hostile", 1));
    delivery.done().await.unwrap();
    let letters = queue.stored_dead_letters(None).await.unwrap();
    assert_eq!(letters.len(), 4);
    assert!(letters.iter().all(|letter| letter.job.is_none()
        && letter.fault.class == Class::Input
        && letter.attempts == 1));
    assert!(letters.iter().any(|letter| letter.fault.message.contains("not a Lethe message")));
    assert_eq!(queue.stored_dead_letters(Some("r")).await.unwrap().len(), 2);
    assert!(queue.dead_letters("r").await.unwrap().is_empty());
    assert!(matches!(queue.replay(&letters[0].name).await, Err(Error::Refused(_))));
    for letter in letters {
        assert!(queue.drop_stored_dead_letter(&letter.name).await.unwrap());
    }
    assert!(
        queue.stored_dead_letters(None).await.unwrap().is_empty()
            && !queue.drop_stored_dead_letter("r.abc").await.unwrap()
    );

    // A message of a later version waits for a worker that can read it.
    let mut foreign = lethe_shared::codec::encode_job(&job("foreign", 1)).unwrap();
    foreign[6] = 9;
    context.publish("lethe.jobs.foreign.concept.1", foreign.into()).await.unwrap().await.unwrap();
    assert!(queue.pull(Duration::from_secs(1)).await.unwrap().is_none());
    assert!(queue.stored_dead_letters(None).await.unwrap().is_empty());
    assert_eq!(queue.backlog().await.unwrap().in_hand, 1);
    queue.purge("foreign").await.unwrap();
}

async fn replays(server: &NatsServer) {
    let queue = queue(server, Role::Coordinator, Limits { failures: 1, ..Limits::default() }).await;
    queue.publish(&job("replays", 1)).await.unwrap();
    queue
        .pull(SOON)
        .await
        .unwrap()
        .unwrap()
        .failed(&Fault::transient("disk full"), "m")
        .await
        .unwrap();
    let letter = queue.stored_dead_letters(Some("replays")).await.unwrap().pop().unwrap();
    assert_eq!((letter.job, letter.worker.as_str()), (Some(job("replays", 1)), "test"));
    assert!(queue.replay(&letter.name).await.unwrap());
    assert!(
        !queue.replay(&letter.name).await.unwrap()
            && queue.stored_dead_letters(Some("replays")).await.unwrap().is_empty()
    );
    let again = queue.pull(SOON).await.unwrap().unwrap();
    assert_eq!((&again.job, again.attempt), (&job("replays", 1), 1));
    again.done().await.unwrap();
}

/// Changed settings of a stream are restored; settings that cannot be restored are rejected with a
/// sentence.
async fn drift(server: &NatsServer) {
    let context = admin(server).await;
    let mut config = context.get_stream("LETHE_JOBS").await.unwrap().cached_info().config.clone();
    config.max_bytes = 1 << 20;
    config.duplicate_window = Duration::from_secs(1);
    context.update_stream(config).await.unwrap();
    let limits = Limits { ack_wait: Duration::from_secs(7), ..Limits::default() };
    let queue = queue(server, Role::Coordinator, limits).await;
    let config = context.get_stream("LETHE_JOBS").await.unwrap().cached_info().config.clone();
    assert_eq!((config.max_bytes, config.duplicate_window), (256 << 20, Duration::from_secs(600)));
    queue.publish(&job("drift", 1)).await.unwrap();
    let delivery = queue.pull(SOON).await.unwrap().unwrap();
    assert_eq!(delivery.limits.ack_wait, limits.ack_wait);
    delivery.done().await.unwrap();

    let other = NatsServer::start(Version::Oldest);
    let stream = jetstream::stream::Config {
        name: "LETHE_JOBS".into(),
        subjects: vec!["lethe.jobs.>".into()],
        retention: RetentionPolicy::Limits,
        storage: StorageType::File,
        ..Default::default()
    };
    admin(&other).await.create_stream(stream).await.unwrap();
    let refused = JetStreamQueue::connect(&other.url(), Role::Coordinator, "test", &options())
        .await
        .unwrap_err();
    assert!(
        matches!(refused, Error::Refused(_)) && refused.to_string().contains("delete the stream"),
        "{refused}"
    );
}

/// A server that restarts without its disk gets its streams again, and takes jobs.
async fn lost_disk(version: Version) {
    let mut server = NatsServer::start(version);
    let coordinator = queue(&server, Role::Coordinator, Limits::default()).await;
    let worker = queue(&server, Role::Worker, Limits::default()).await;
    coordinator.publish(&job("disk", 1)).await.unwrap();
    for wiped in [false, true] {
        server.kill();
        if wiped {
            server.wipe();
        }
        server.run();
        if wiped {
            coordinator.publish(&job("disk", 1)).await.unwrap();
        }
        let delivery = loop {
            match worker.pull(Duration::from_secs(1)).await {
                Ok(Some(delivery)) => break delivery,
                Ok(None) | Err(Error::Unavailable(_)) => {
                    tokio::time::sleep(Duration::from_millis(50)).await
                }
                Err(error) => panic!("{error}"),
            }
        };
        assert_eq!(delivery.job, job("disk", 1));
        if wiped {
            delivery.done().await.unwrap();
        } else {
            delivery.release().await.unwrap();
        }
    }
}

/// A server whose disk has room for exactly its streams: 2.9 refuses to create them again, and a
/// restarted coordinator uses the existing ones.
async fn full_disk(version: Version) {
    let mut server = NatsServer::start(version);
    let coordinator = queue(&server, Role::Coordinator, Limits::default()).await;
    coordinator.publish(&job("full", 1)).await.unwrap();
    server.kill();
    server.limit_disk(600 << 20);
    server.run();
    let again = queue(&server, Role::Coordinator, Limits::default()).await;
    assert_eq!(again.pull(SOON).await.unwrap().unwrap().job, job("full", 1));
    // Without streams, the coordinator reports the reason.
    server.kill();
    server.wipe();
    server.limit_disk(32 << 20);
    server.run();
    let refused = JetStreamQueue::connect_with(
        &server.url(),
        Role::Coordinator,
        "test",
        &options(),
        Limits::default(),
    )
    .await;
    let error = refused.unwrap_err().to_string();
    assert!(error.contains("580 MiB") && error.contains("refuses LETHE_JOBS"), "{error}");
}

async fn leases(server: &NatsServer) {
    let limits = Limits { ack_wait: Duration::from_secs(2), ..Limits::default() };
    let (one, two) = (
        queue(server, Role::Coordinator, limits).await,
        queue(server, Role::Coordinator, limits).await,
    );
    let lease = one.lease("r.1").await.unwrap().unwrap();
    // Longer than a term, so the lease must have been renewed.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(two.lease("r.1").await.unwrap().is_none() && one.lease("r.1").await.unwrap().is_none());
    assert_eq!(two.lease_holder("r.1").await.unwrap().as_deref(), Some("test"));
    assert!(two.lease("r.2").await.unwrap().is_some());
    lease.release().await.unwrap();
    let lease = two.lease("r.1").await.unwrap().expect("a lease that was released is free at once");
    // After its holder's death, a lease is free at the end of its term.
    drop(lease);
    let began = std::time::Instant::now();
    let lease = loop {
        if let Some(lease) = one.lease("r.1").await.unwrap() {
            break lease;
        }
        assert!(began.elapsed() < SOON);
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert!(!lease.lost().is_cancelled());
    // Another message on the subject takes the lease over, and the holder notices.
    let context = admin(server).await;
    context.publish("lethe.lease.r~2e1", "somebody else".into()).await.unwrap().await.unwrap();
    tokio::time::timeout(SOON, lease.lost().cancelled()).await.expect("a lost lease is noticed");
}

/// An unfinished job becomes a dead letter even if the server's advisory about it was lost.
async fn sweeps(server: &NatsServer) {
    let limits = Limits { ack_wait: Duration::from_secs(1), deliveries: 1, ..Limits::default() };
    let coordinator = queue(server, Role::Coordinator, limits).await;
    coordinator.publish(&job("sweeps", 1)).await.unwrap();
    let worker = queue(server, Role::Worker, limits).await;
    drop(coordinator);
    drop(worker.pull(SOON).await.unwrap().unwrap());
    // The server drops the job at the next pull, and no subscriber receives its advisory.
    assert!(worker.pull(Duration::from_secs(2)).await.unwrap().is_none());
    let coordinator = queue(server, Role::Coordinator, limits).await;
    let began = std::time::Instant::now();
    while coordinator.dead_letters("sweeps").await.unwrap().is_empty() {
        assert!(began.elapsed() < SOON, "the first sweep comes at once");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // The dead letter is written before the message is deleted.
    while messages(&admin(server).await).await > 0 {
        assert!(began.elapsed() < SOON, "what is buried is off the queue");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Returns the number of messages on the queue, of all runs.
async fn messages(context: &jetstream::Context) -> u64 {
    context.get_stream("LETHE_JOBS").await.unwrap().cached_info().state.messages
}

/// Restarts a server with a consumer file in which everything up to a sequence was delivered and
/// acknowledged.
fn restart_past(server: &mut NatsServer, sequence: u64) {
    server.kill();
    // Magic and version; deliveries and sequences of the ack floor and of the last delivery;
    // nothing pending, nothing redelivered.
    let mut state = vec![22, 2];
    for _ in 0..4 {
        let mut rest = sequence;
        while rest > 127 {
            state.push((rest & 127) as u8 | 128);
            rest >>= 7;
        }
        state.push(rest as u8);
    }
    state.extend([0, 0]);
    std::fs::write(
        server.path("jetstream/jetstream/$G/streams/LETHE_JOBS/obs/workers/o.dat"),
        state,
    )
    .unwrap();
    server.run();
}

/// Takes a job within a time limit, and tolerates errors while the queue is being repaired.
async fn comes(worker: &JetStreamQueue, within: Duration) -> Delivery {
    let began = std::time::Instant::now();
    loop {
        match worker.pull(Duration::from_secs(1)).await {
            Ok(Some(delivery)) => return delivery,
            Ok(None) | Err(Error::Unavailable(_)) => {
                tokio::time::sleep(Duration::from_millis(50)).await
            }
            Err(error) => panic!("{error}"),
        }
        assert!(began.elapsed() < within, "no job comes of what is on the queue");
    }
}

/// Jobs before the consumer's position, which the server would never deliver, are executed
/// nevertheless; none becomes a dead letter.
async fn passed_over(version: Version) {
    let limits = Limits { ack_wait: Duration::from_secs(2), ..Limits::default() };
    let mut server = NatsServer::start(version);
    let mut last = 0;
    // Idle: no job waits or is in progress, and three jobs are in the stream. With a position
    // beyond the end of the stream, the oldest server also skips later jobs.
    for beyond in [0, 1_000_000] {
        let coordinator = queue(&server, Role::Coordinator, limits).await;
        for number in 1..=3 {
            coordinator.publish(&job("passed over", number)).await.unwrap();
        }
        last += 3;
        drop(coordinator);
        restart_past(&mut server, last + beyond);
        let stream = admin(&server).await.get_stream("LETHE_JOBS").await.unwrap();
        let consumer = stream.consumer_info("workers").await.unwrap();
        assert_eq!(
            (stream.cached_info().state.messages, consumer.num_pending, consumer.num_ack_pending),
            (3, 0, 0)
        );
        assert!(consumer.delivered.stream_sequence >= last);

        let coordinator = queue(&server, Role::Coordinator, limits).await;
        let worker = queue(&server, Role::Worker, limits).await;
        for number in 1..=3 {
            let delivery = comes(&worker, SOON).await;
            assert_eq!((&delivery.job, delivery.attempt), (&job("passed over", number), 1));
            delivery.done().await.unwrap();
        }
        assert!(coordinator.stored_dead_letters(None).await.unwrap().is_empty());
    }

    // With another job in progress, which stays there.
    let coordinator = queue(&server, Role::Coordinator, limits).await;
    coordinator.publish(&job("passed over", 4)).await.unwrap();
    drop(coordinator);
    restart_past(&mut server, last + 1);
    let coordinator = queue(&server, Role::Coordinator, limits).await;
    let worker = queue(&server, Role::Worker, limits).await;
    coordinator.publish(&job("passed over", 5)).await.unwrap();
    let in_hand = comes(&worker, SOON).await;
    assert_eq!(in_hand.job, job("passed over", 5), "before two looks have seen the other");
    let working = async {
        loop {
            in_hand.heartbeat().await.unwrap();
            tokio::time::sleep(limits.ack_wait / 4).await;
        }
    };
    let again = tokio::select! {
        delivery = comes(&worker, SOON) => delivery,
        () = working => unreachable!("it works until the other comes"),
    };
    assert_eq!((&again.job, again.attempt), (&job("passed over", 4), 1));
    assert_eq!(again.traceparent, lethe_queue::traceparent("passed over", again.job.id()));
    again.done().await.unwrap();
    in_hand.done().await.unwrap();
    assert!(coordinator.stored_dead_letters(None).await.unwrap().is_empty());
    assert_eq!(messages(&admin(&server).await).await, 0);
}

/// A disk that lost its last writes, as in a power failure: the stream ends before the consumer's
/// position, and the oldest server does not find messages that it stores afterwards. Republished
/// jobs are executed nevertheless.
async fn lost_tail(version: Version) {
    let limits = Limits { ack_wait: Duration::from_secs(2), ..Limits::default() };
    let mut server = NatsServer::start(version);
    let coordinator = queue(&server, Role::Coordinator, limits).await;
    let worker = queue(&server, Role::Worker, limits).await;
    // One message always stays, so that the file stays; the oldest server writes the start of the
    // stream at most every two seconds, and the consumer's position when it finds the time.
    coordinator.publish(&job("before", 0)).await.unwrap();
    let position = server.path("jetstream/jetstream/$G/streams/LETHE_JOBS/obs/workers/o.dat");
    let written = || std::fs::metadata(&position).and_then(|file| file.modified()).ok();
    let (began, mut number, mut halfway) = (std::time::Instant::now(), 0, None);
    while number < 100
        || began.elapsed() < Duration::from_secs(3)
        || written().is_none_or(|written| Some(written) <= halfway)
    {
        assert!(began.elapsed() < SOON, "the consumer's position is not written");
        number += 1;
        coordinator.publish(&job("before", number)).await.unwrap();
        comes(&worker, SOON).await.done().await.unwrap();
        if number == 100 {
            halfway = Some(std::time::SystemTime::now());
        }
    }
    drop(coordinator);
    server.kill();
    let file = std::fs::File::options()
        .write(true)
        .open(server.path("jetstream/jetstream/$G/streams/LETHE_JOBS/msgs/1.blk"))
        .unwrap();
    file.set_len(file.metadata().unwrap().len() / 50 + 7).unwrap();
    server.run();

    let context = admin(&server).await;
    context.publish("lethe.jobs.nobody.s.job", "".into()).await.unwrap().await.unwrap();
    let stream = context.get_stream("LETHE_JOBS").await.unwrap();
    let consumer = stream.consumer_info("workers").await.unwrap();
    let (delivered, state) = (&consumer.delivered, &stream.cached_info().state);
    assert!(
        state.last_sequence < delivered.consumer_sequence / 2,
        "its tail is lost: {state:?}, {delivered:?}"
    );
    if version == Version::Oldest {
        assert!(
            delivered.stream_sequence > state.last_sequence && state.messages > 0,
            "{state:?}, {delivered:?}"
        );
        stream
            .raw_message_builder()
            .next_by_subject(">")
            .sequence(1)
            .send()
            .await
            .expect_err("it does not find what it has");
    }
    let coordinator = queue(&server, Role::Coordinator, limits).await;
    let mut open: std::collections::BTreeSet<u32> = (1..=3).collect();
    let began = std::time::Instant::now();
    while !open.is_empty() {
        for &number in &open {
            // The queue may be unavailable while it is being repaired.
            if let Err(error) = coordinator.publish(&job("after", number)).await {
                assert!(error.is_transient(), "{error}");
            }
        }
        match worker.pull(Duration::from_secs(1)).await {
            Ok(Some(delivery)) => {
                if delivery.job.run == "after" {
                    open.remove(&conformance::number(&delivery.job));
                }
                delivery.done().await.unwrap();
            }
            Ok(None) | Err(Error::Unavailable(_)) => {
                tokio::time::sleep(Duration::from_millis(50)).await
            }
            Err(error) => panic!("{error}"),
        }
        assert!(began.elapsed() < SOON, "jobs {open:?} are on the queue and nobody gets them");
    }
}
