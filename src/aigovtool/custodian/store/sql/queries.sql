-- Every query of the store. After its name each has a comment; parameters are named.

-- name: insert_custodian
-- Make the one row that says who this custodian is.
INSERT INTO custodian (only_one, public_key, wrapped_signing_key, certificate_pem, created_us)
VALUES (1, :public_key, :wrapped_signing_key, :certificate_pem, :created_us);

-- name: custodian
-- Read it.
SELECT public_key, wrapped_signing_key, certificate_pem, created_us FROM custodian;

-- name: insert_model
-- Register a sealed model.
INSERT INTO models (digest, name, version, manifest, wrapped_key, body_bytes, body_sha256,
    source_sha256, created_us, context)
VALUES (:digest, :name, :version, :manifest, :wrapped_key, :body_bytes, :body_sha256,
    :source_sha256, :created_us, :context);

-- name: model
-- One model by its digest.
SELECT digest, name, version, manifest, wrapped_key, body_bytes, body_sha256, source_sha256,
    created_us, context
FROM models WHERE digest = :digest;

-- name: models
-- All models, the oldest first.
SELECT digest, name, version, manifest, wrapped_key, body_bytes, body_sha256, source_sha256,
    created_us, context
FROM models ORDER BY created_us, name, version;

-- name: insert_loan
-- Make a loan.
INSERT INTO loans (loan, name, model, state, state_reason, policy, token_sha256, max_enclaves,
    max_lease_credits, lease_duration_us, settle_grace_us, wipe_after_us, reattest_interval_us,
    expires_us, granted, remaining, leased, spent, forfeited, created_us,
    rate_credits, rate_per_s, rate_full_us, concurrency, price_input, price_output,
    shared_prefixes, top_logprobs, output_tokens_per_day, alike_per_day, queries_per_day,
    output_digits, top_labels, evictable)
VALUES (:loan, :name, :model, :state, :state_reason, :policy, :token_sha256, :max_enclaves,
    :max_lease_credits, :lease_duration_us, :settle_grace_us, :wipe_after_us,
    :reattest_interval_us, :expires_us, :granted, :remaining, :leased, :spent, :forfeited,
    :created_us,
    :rate_credits, :rate_per_s, :rate_full_us, :concurrency, :price_input, :price_output,
    :shared_prefixes, :top_logprobs, :output_tokens_per_day, :alike_per_day, :queries_per_day,
    :output_digits, :top_labels, :evictable);

-- name: loan
-- One loan by its id.
SELECT loan, name, model, state, state_reason, token_sha256, max_enclaves, max_lease_credits,
    lease_duration_us, settle_grace_us, wipe_after_us, reattest_interval_us, expires_us, granted,
    remaining, leased, spent, forfeited, created_us, rate_credits, rate_per_s, rate_full_us,
    concurrency, retires_us, price_input, price_output, shared_prefixes, top_logprobs,
    output_tokens_per_day, alike_per_day, queries_per_day, output_digits, top_labels, evictable
FROM loans WHERE loan = :loan;

-- name: loan_of_token
-- The loan whose ticket holds a token with this hash.
SELECT loan, name, model, state, state_reason, token_sha256, max_enclaves, max_lease_credits,
    lease_duration_us, settle_grace_us, wipe_after_us, reattest_interval_us, expires_us, granted,
    remaining, leased, spent, forfeited, created_us, rate_credits, rate_per_s, rate_full_us,
    concurrency, retires_us, price_input, price_output, shared_prefixes, top_logprobs,
    output_tokens_per_day, alike_per_day, queries_per_day, output_digits, top_labels, evictable
FROM loans WHERE token_sha256 = :token_sha256;

-- name: loans
-- All loans, the oldest first.
SELECT loan, name, model, state, state_reason, token_sha256, max_enclaves, max_lease_credits,
    lease_duration_us, settle_grace_us, wipe_after_us, reattest_interval_us, expires_us, granted,
    remaining, leased, spent, forfeited, created_us, rate_credits, rate_per_s, rate_full_us,
    concurrency, retires_us, price_input, price_output, shared_prefixes, top_logprobs,
    output_tokens_per_day, alike_per_day, queries_per_day, output_digits, top_labels, evictable
FROM loans ORDER BY created_us, loan;

-- name: loans_past_date
-- Loans that must be noted as expired.
SELECT loan FROM loans
WHERE expires_us <= :now_us AND state IN ('active', 'stopped') ORDER BY loan;

-- name: loan_policy
-- The text of a loan's appraisal policy.
SELECT policy FROM loans WHERE loan = :loan;

-- name: set_loan_account
-- Write a loan's account; the table checks that it adds up.
UPDATE loans SET granted = :granted, remaining = :remaining, leased = :leased, spent = :spent,
    forfeited = :forfeited
WHERE loan = :loan;

-- name: set_loan_state
-- Move a loan to another state.
UPDATE loans SET state = :state, state_reason = :state_reason WHERE loan = :loan;

-- name: set_loan_model
-- Lend another model from now on.
UPDATE loans SET model = :model, retires_us = :retires_us WHERE loan = :loan;

-- name: set_loan_token
-- Replace the ticket's token.
UPDATE loans SET token_sha256 = :token_sha256 WHERE loan = :loan;

-- name: insert_consumer
-- Make a consumer.
INSERT INTO consumers (consumer, loan, name, key_sha256, blocked, blocked_reason, budgeted,
    granted, remaining, leased, spent, forfeited, used, created_us, period, period_budget,
    period_began_us, period_ends_us, period_excess, rate_credits, rate_per_s, rate_full_us,
    concurrency, expires_us, expired)
VALUES (:consumer, :loan, :name, :key_sha256, :blocked, :blocked_reason, :budgeted, :granted,
    :remaining, :leased, :spent, :forfeited, :used, :created_us, :period, :period_budget,
    :period_began_us, :period_ends_us, :period_excess, :rate_credits, :rate_per_s, :rate_full_us,
    :concurrency, :expires_us, :expired);

-- name: consumer
-- One consumer by its id.
SELECT consumer, loan, name, key_sha256, blocked, blocked_reason, budgeted, granted, remaining,
    leased, spent, forfeited, used, created_us, period, period_budget, period_began_us,
    period_ends_us, period_excess, rate_credits, rate_per_s, rate_full_us, concurrency, expires_us,
    expired
FROM consumers WHERE consumer = :consumer;

-- name: consumers_of_loan
-- The consumers of a loan, the oldest first.
SELECT consumer, loan, name, key_sha256, blocked, blocked_reason, budgeted, granted, remaining,
    leased, spent, forfeited, used, created_us, period, period_budget, period_began_us,
    period_ends_us, period_excess, rate_credits, rate_per_s, rate_full_us, concurrency, expires_us,
    expired
FROM consumers WHERE loan = :loan ORDER BY created_us, consumer;

-- name: set_consumer_account
-- Write what a consumer has and used; the table checks that it adds up.
UPDATE consumers SET granted = :granted, remaining = :remaining, leased = :leased,
    spent = :spent, forfeited = :forfeited, used = :used
WHERE consumer = :consumer;

-- name: set_consumer_blocked
-- Block or unblock a consumer.
UPDATE consumers SET blocked = :blocked, blocked_reason = :blocked_reason
WHERE consumer = :consumer;

-- name: set_consumer_terms
-- Write when a consumer's budget begins anew, its limits, and until when it may ask.
UPDATE consumers SET period = :period, period_budget = :period_budget,
    period_began_us = :period_began_us, period_ends_us = :period_ends_us,
    period_excess = :period_excess, rate_credits = :rate_credits, rate_per_s = :rate_per_s,
    rate_full_us = :rate_full_us, concurrency = :concurrency, expires_us = :expires_us,
    expired = :expired
WHERE consumer = :consumer;

-- name: set_loan_terms
-- Write those terms of a loan that may be changed, and where its rate's bucket stands.
UPDATE loans SET max_enclaves = :max_enclaves, max_lease_credits = :max_lease_credits,
    lease_duration_us = :lease_duration_us, expires_us = :expires_us,
    rate_credits = :rate_credits, rate_per_s = :rate_per_s, rate_full_us = :rate_full_us,
    concurrency = :concurrency, price_input = :price_input, price_output = :price_output,
    shared_prefixes = :shared_prefixes, top_logprobs = :top_logprobs,
    output_tokens_per_day = :output_tokens_per_day, alike_per_day = :alike_per_day,
    queries_per_day = :queries_per_day, output_digits = :output_digits, top_labels = :top_labels,
    evictable = :evictable
WHERE loan = :loan;

-- name: set_outputs
-- Note how many tokens a consumer was given in a day by one enclave process.
INSERT INTO outputs (loan, consumer, day, watch, tokens)
VALUES (:loan, :consumer, :day, :watch, :tokens)
ON CONFLICT (loan, day, consumer, watch) DO UPDATE SET tokens = excluded.tokens;

-- name: outputs_elsewhere
-- What each consumer of a loan was given in a day by other processes.
SELECT consumer, sum(tokens) AS tokens FROM outputs
WHERE loan = :loan AND day = :day AND watch <> :watch GROUP BY consumer ORDER BY consumer;

-- name: forget_outputs
-- Delete what a loan's consumers were given before a day.
DELETE FROM outputs WHERE loan = :loan AND day < :day;

-- name: consumers_to_turn
-- Consumers whose budget's period is over, of loans that may serve again.
SELECT consumers.consumer AS consumer FROM consumers
    JOIN loans ON loans.loan = consumers.loan
WHERE consumers.period IS NOT NULL AND consumers.period_ends_us <= :now_us
    AND loans.state IN ('active', 'stopped')
ORDER BY consumers.consumer LIMIT :limit;

-- name: consumers_to_expire
-- Consumers past their date whose enclaves were not told.
SELECT consumer FROM consumers WHERE expired = 0 AND expires_us <= :now_us
ORDER BY consumer LIMIT :limit;

-- name: consumers_ending
-- Consumers of a loan whose date comes before :until_us and was not noted as past.
SELECT consumer, expires_us FROM consumers
WHERE loan = :loan AND expired = 0 AND expires_us < :until_us;

-- name: insert_period
-- Keep the turn of a consumer's budget to a new period.
INSERT INTO periods (consumer, loan, number, unit, began_us, withdrawn, granted, created_us)
VALUES (:consumer, :loan, :number, :unit, :began_us, :withdrawn, :granted, :created_us);

-- name: last_period_of_consumer
-- The number of a consumer's last turn; 0 before the first.
SELECT coalesce(max(number), 0) AS number FROM periods WHERE consumer = :consumer;

-- name: periods_of_loan
-- Turns of budgets under a loan, the newest first.
SELECT consumer, loan, number, unit, began_us, withdrawn, granted, created_us
FROM periods WHERE loan = :loan ORDER BY created_us DESC, consumer, number DESC LIMIT :limit;

-- name: insert_session
-- Open a session: its evidence was appraised as acceptable.
INSERT INTO sessions (session, loan, state, tls_spki_sha256, signing_key, hpke_key, tee,
    measurement, software, opened_us, disconnected_us, ended_us, end_reason, last_report,
    report_sha256, decision, model)
VALUES (:session, :loan, :state, :tls_spki_sha256, :signing_key, :hpke_key, :tee, :measurement,
    :software, :opened_us, :disconnected_us, :ended_us, :end_reason, :last_report,
    :report_sha256, :decision, :model);

-- name: session
-- One session by its id.
SELECT session, loan, state, tls_spki_sha256, signing_key, hpke_key, tee, measurement, software,
    opened_us, disconnected_us, ended_us, end_reason, last_report, report_sha256, decision,
    replica, model
FROM sessions WHERE session = :session;

-- name: sessions_of_loan
-- The sessions of a loan, the newest first.
SELECT session, loan, state, tls_spki_sha256, signing_key, hpke_key, tee, measurement, software,
    opened_us, disconnected_us, ended_us, end_reason, last_report, report_sha256, decision,
    replica, model
FROM sessions WHERE loan = :loan ORDER BY opened_us DESC, session LIMIT :limit;

-- name: live_sessions_of_loan
-- The sessions of a loan that count against max_enclaves, the longest silent first.
SELECT session, loan, state, tls_spki_sha256, signing_key, hpke_key, tee, measurement, software,
    opened_us, disconnected_us, ended_us, end_reason, last_report, report_sha256, decision,
    replica, model
FROM sessions WHERE loan = :loan AND state = 'live'
ORDER BY coalesce(disconnected_us, 9223372036854775807), session;

-- name: count_connected_sessions
-- How many sessions share what is left.
SELECT count(*) AS sessions FROM sessions
WHERE loan = :loan AND state = 'live' AND disconnected_us IS NULL;

-- name: savepoint
-- What follows can be undone without the rest of its transaction.
SAVEPOINT decision;

-- name: undo_to_savepoint
-- Undo it; the savepoint stays.
ROLLBACK TO SAVEPOINT decision;

-- name: release_savepoint
-- Keep it, as a part of the transaction.
RELEASE SAVEPOINT decision;

-- name: count_sessions
-- How many sessions of a loan are in which state.
SELECT state, count(*) AS sessions FROM sessions WHERE loan = :loan GROUP BY state;

-- name: count_sharers
-- How many sessions hold leases of what a loan has left.
SELECT count(DISTINCT session) AS sessions FROM leases
WHERE loan = :loan AND state = 'open';

-- name: limits_concurrency
-- Whether any consumer of a loan may run only so many queries at one time.
SELECT count(*) AS consumers FROM consumers WHERE loan = :loan AND concurrency IS NOT NULL;

-- name: place_of_session
-- How many sessions of a loan live, and how many of them were opened before this one.
SELECT count(*) AS sessions, coalesce(sum(CASE WHEN others.opened_us < mine.opened_us
        OR (others.opened_us = mine.opened_us AND others.session < mine.session)
    THEN 1 ELSE 0 END), 0) AS place
FROM sessions AS mine JOIN sessions AS others ON others.loan = mine.loan
WHERE mine.session = :session AND others.state = 'live';

-- name: set_session_state
-- Move a session to another state, or note when its connection opened or closed.
UPDATE sessions SET state = :state, disconnected_us = :disconnected_us, ended_us = :ended_us,
    end_reason = :end_reason, replica = :replica
WHERE session = :session;

-- name: set_session_report
-- Note the last report and what was decided on it; numbers only rise, one by one.
UPDATE sessions SET last_report = :last_report, report_sha256 = :report_sha256,
    decision = :decision
WHERE session = :session AND last_report = :last_report - 1;

-- name: disconnect_all_sessions
-- After a start nobody is connected yet, and every session gets a fresh grace.
UPDATE sessions SET disconnected_us = :now_us, replica = NULL;

-- name: free_sessions
-- A replica is gone, and with it the connections that it held.
UPDATE sessions SET disconnected_us = :now_us, replica = NULL WHERE replica = :replica;

-- name: join_replicas
-- Belong to the processes that serve this ledger.
INSERT INTO replicas (joined_us, beat) VALUES (:now_us, 0) RETURNING number;

-- name: replicas
-- The processes that belong together, and how far each one's beat is.
SELECT number, beat FROM replicas ORDER BY number;

-- name: beat
-- Say that this one lives, unless the others have given it up.
UPDATE replicas SET beat = beat + 1 WHERE number = :replica;

-- name: remove_replica
-- One no longer belongs to them.
DELETE FROM replicas WHERE number = :replica;

-- name: leased_to_connected
-- Credits in leases of sessions that are connected to one replica, or to the only process.
SELECT coalesce(sum(leases.credits), 0) AS credits
FROM leases JOIN sessions ON sessions.session = leases.session
WHERE leases.state = 'open' AND sessions.disconnected_us IS NULL
    AND (CAST(:replica AS INTEGER) IS NULL OR sessions.replica = :replica);

-- name: insert_challenge
-- A nonce is out.
INSERT INTO challenges (nonce, loan, expires_us) VALUES (:nonce, :loan, :expires_us);

-- name: remove_challenge
-- Take a nonce back, if it is still good.
DELETE FROM challenges WHERE nonce = :nonce AND loan = :loan AND expires_us > :now_us;

-- name: remove_old_challenges
-- Forget what is too old, and the oldest of a loan that are too many.
DELETE FROM challenges WHERE loan = :loan AND (expires_us <= :now_us OR nonce NOT IN (
    SELECT nonce FROM challenges WHERE loan = :loan ORDER BY expires_us DESC, nonce LIMIT :most));

-- name: insert_standing
-- Note how a new session stands.
INSERT INTO standings (session, appraised_us, tcb_status, grace, step, nonce, asked_us, overdue)
VALUES (:session, :appraised_us, :tcb_status, :grace, :step, :nonce, :asked_us, :overdue);

-- name: standing
-- How a session stands.
SELECT session, appraised_us, tcb_status, grace, step, nonce, asked_us, overdue
FROM standings WHERE session = :session;

-- name: keep_document
-- Keep a document, once.
INSERT INTO documents (sha256, body) VALUES (:sha256, :body) ON CONFLICT (sha256) DO NOTHING;

-- name: document
-- One document by its digest.
SELECT body FROM documents WHERE sha256 = :sha256;

-- name: insert_appraisal
-- Keep what evidence a session was accepted on.
INSERT INTO appraisals (session, nonce, judged_us, tee, policy)
VALUES (:session, :nonce, :judged_us, :tee, :policy);

-- name: insert_appraisal_document
-- Keep one of its documents.
INSERT INTO appraisal_documents (session, nonce, role, name, sha256)
VALUES (:session, :nonce, :role, :name, :sha256);

-- name: appraisals_of_session
-- What evidence a session was accepted on, the oldest first.
SELECT session, nonce, judged_us, tee, policy FROM appraisals
WHERE session = :session ORDER BY judged_us, nonce;

-- name: appraisal_documents
-- The documents of one appraisal.
SELECT role, name, sha256 FROM appraisal_documents
WHERE session = :session AND nonce = :nonce ORDER BY role, name;

-- name: set_standing
-- Note how a session stands now.
UPDATE standings SET appraised_us = :appraised_us, tcb_status = :tcb_status, grace = :grace,
    step = :step, nonce = :nonce, asked_us = :asked_us, overdue = :overdue
WHERE session = :session;

-- name: count_steps
-- How many connected sessions of a loan have aged how far.
SELECT standings.step AS step, count(*) AS sessions FROM standings
    JOIN sessions ON sessions.session = standings.session
WHERE sessions.loan = :loan AND sessions.state = 'live' AND sessions.disconnected_us IS NULL
GROUP BY standings.step;

-- name: ageing_sessions
-- Live sessions whose platform is out of date.
SELECT standings.session AS session FROM standings
    JOIN sessions ON sessions.session = standings.session
WHERE sessions.state = 'live' AND standings.grace IS NOT NULL
ORDER BY standings.session;

-- name: sessions_to_ask
-- Connected sessions that must attest again and were not asked, the longest due first.
SELECT standings.session AS session FROM standings
    JOIN sessions ON sessions.session = standings.session
    JOIN loans ON loans.loan = sessions.loan
WHERE sessions.state = 'live' AND sessions.disconnected_us IS NULL AND loans.state = 'active'
    AND standings.nonce IS NULL AND loans.reattest_interval_us > 0
    AND standings.appraised_us + loans.reattest_interval_us <= :now_us
ORDER BY standings.appraised_us + loans.reattest_interval_us, standings.session LIMIT :limit;

-- name: overdue_sessions
-- Connected sessions that should have attested again, of which that was not noted yet.
SELECT standings.session AS session FROM standings
    JOIN sessions ON sessions.session = standings.session
    JOIN loans ON loans.loan = sessions.loan
WHERE sessions.state = 'live' AND sessions.disconnected_us IS NULL
    AND standings.overdue = 0 AND loans.reattest_interval_us > 0
    AND standings.appraised_us + loans.reattest_interval_us + :answer_within_us <= :now_us
ORDER BY standings.session LIMIT :limit;

-- name: silent_sessions
-- Live sessions that were silent for their grace and have nothing left to settle.
SELECT sessions.session AS session FROM sessions JOIN loans ON loans.loan = sessions.loan
WHERE sessions.state = 'live'
    AND sessions.disconnected_us + loans.settle_grace_us <= :now_us
    AND NOT EXISTS (
        SELECT 1 FROM leases WHERE leases.session = sessions.session AND leases.state = 'open')
ORDER BY sessions.session LIMIT :limit;

-- name: retired_sessions
-- Live sessions with a model that their loan lends no more, and whose time is over.
SELECT sessions.session AS session FROM sessions JOIN loans ON loans.loan = sessions.loan
WHERE sessions.state = 'live' AND sessions.model <> loans.model AND loans.retires_us <= :now_us
ORDER BY sessions.session LIMIT :limit;

-- name: insert_lease
-- Grant a lease.
INSERT INTO leases (lease, session, loan, number, credits, duration_us, granted_us, expires_us,
    state, used, forfeited_us, refunded_us, written_off_us)
VALUES (:lease, :session, :loan, :number, :credits, :duration_us, :granted_us, :expires_us,
    :state, :used, :forfeited_us, :refunded_us, :written_off_us);

-- name: insert_lease_cap
-- Reserve a part of a consumer's own budget for a lease.
INSERT INTO lease_caps (lease, consumer, credits) VALUES (:lease, :consumer, :credits);

-- name: lease
-- One lease by its id.
SELECT lease, session, loan, number, credits, duration_us, granted_us, expires_us, state, used,
    forfeited_us, refunded_us, written_off_us
FROM leases WHERE lease = :lease;

-- name: lease_caps
-- What a lease reserves.
SELECT consumer, credits FROM lease_caps WHERE lease = :lease ORDER BY consumer;

-- name: leases_of_loan
-- The leases of a loan, the newest first.
SELECT lease, session, loan, number, credits, duration_us, granted_us, expires_us, state, used,
    forfeited_us, refunded_us, written_off_us
FROM leases WHERE loan = :loan ORDER BY granted_us DESC, lease LIMIT :limit;

-- name: open_of_session
-- How many leases a session has not settled, their credits, and when the last is over.
SELECT count(*) AS leases, coalesce(sum(credits), 0) AS credits, max(expires_us) AS expires_us
FROM leases WHERE session = :session AND state = 'open';

-- name: unsettled_of_session
-- Whether a session still has anything to settle, forfeited or not.
SELECT count(*) AS leases FROM leases
WHERE session = :session AND state IN ('open', 'forfeited');

-- name: set_lease_state
-- Settle, forfeit or refund a lease.
UPDATE leases SET state = :state, used = :used, forfeited_us = :forfeited_us,
    refunded_us = :refunded_us
WHERE lease = :lease;

-- name: leases_to_forfeit
-- Leases that are over since their grace, of sessions that are silent since theirs.
SELECT leases.lease AS lease FROM leases
    JOIN sessions ON sessions.session = leases.session
    JOIN loans ON loans.loan = leases.loan
WHERE leases.state = 'open'
    AND leases.expires_us + loans.settle_grace_us <= :now_us
    AND sessions.disconnected_us + loans.settle_grace_us <= :now_us
ORDER BY leases.lease LIMIT :limit;

-- name: exposure
-- Credits in leases that may still be served from, when the last of them is over, and how long the
-- longest lasts that is past its end by our clock. Such a lease counts while its session is
-- connected: our clock may have jumped, and an enclave settles a lease as soon as it is over by its
-- own. One of duration 0 counts for as long as an enclave may take to use it.
SELECT coalesce(sum(leases.credits), 0) AS credits, max(leases.expires_us) AS expires_us,
    coalesce(max(CASE WHEN leases.expires_us <= :now_us THEN leases.duration_us ELSE 0 END), 0)
        AS longest_us
FROM leases JOIN sessions ON sessions.session = leases.session
WHERE leases.loan = :loan AND leases.state = 'open'
    AND (leases.expires_us > :now_us OR sessions.disconnected_us IS NULL
        OR (leases.duration_us = 0 AND leases.granted_us + :answer_lives_us > :now_us));

-- name: insert_settlement
-- Keep a signed settlement as it came.
INSERT INTO settlements (lease, used, receipts, receipt_chain, payload, signature, received_us)
VALUES (:lease, :used, :receipts, :receipt_chain, :payload, :signature, :received_us);

-- name: insert_settlement_use
-- Keep whose use it reports.
INSERT INTO settlement_uses (lease, consumer, credits) VALUES (:lease, :consumer, :credits);

-- name: settlement_payload
-- The signed bytes of a lease's settlement.
SELECT payload FROM settlements WHERE lease = :lease;

-- name: balance_at
-- What had become of a loan's credits at a time: the moves before it, added up.
SELECT
    (SELECT coalesce(sum(credits), 0) FROM grants
        WHERE loan = :loan AND consumer IS NULL AND created_us < :at_us) AS granted,
    coalesce(sum(CASE
        WHEN settlements.received_us < :at_us OR leases.forfeited_us < :at_us THEN 0
        ELSE leases.credits END), 0) AS leased,
    coalesce(sum(CASE
        WHEN settlements.received_us < :at_us THEN settlements.used
        ELSE 0 END), 0) AS spent,
    coalesce(sum(CASE
        WHEN leases.forfeited_us IS NULL OR leases.forfeited_us >= :at_us THEN 0
        WHEN settlements.received_us IS NULL OR settlements.received_us >= :at_us
            THEN leases.credits
        WHEN leases.refunded_us IS NOT NULL OR leases.written_off_us IS NOT NULL
            THEN leases.credits - settlements.used
        ELSE 0 END), 0) AS forfeited
FROM leases LEFT JOIN settlements ON settlements.lease = leases.lease
WHERE leases.loan = :loan AND leases.granted_us < :at_us;

-- name: grants_between
-- The making of credits in a span, the oldest first.
SELECT loan, consumer, credits, kind, lease, reason, actor, idempotency_key, created_us
FROM grants WHERE loan = :loan AND created_us >= :begin_us AND created_us < :end_us
ORDER BY number;

-- name: leases_between
-- Leases that were unsettled at the beginning of a span, or granted or moved in it.
SELECT leases.lease AS lease, leases.session AS session, leases.credits AS credits,
    leases.granted_us AS granted_us, leases.expires_us AS expires_us,
    leases.forfeited_us AS forfeited_us, leases.refunded_us AS refunded_us,
    leases.written_off_us AS written_off_us, settlements.payload AS payload, settlements.signature AS signature,
    settlements.received_us AS received_us
FROM leases LEFT JOIN settlements ON settlements.lease = leases.lease
WHERE leases.loan = :loan AND leases.granted_us < :end_us
    AND ((settlements.received_us IS NULL AND leases.forfeited_us IS NULL)
        OR settlements.received_us >= :begin_us
        OR leases.forfeited_us >= :begin_us
        OR leases.refunded_us >= :begin_us)
ORDER BY leases.granted_us, leases.lease LIMIT :limit;

-- name: settlements_before
-- The settlements of a session that came last before a time.
SELECT settlements.payload AS payload, settlements.signature AS signature
FROM settlements JOIN leases ON leases.lease = settlements.lease
WHERE leases.session = :session AND settlements.received_us = (
    SELECT max(earlier.received_us) FROM settlements AS earlier
        JOIN leases AS theirs ON theirs.lease = earlier.lease
    WHERE theirs.session = :session AND earlier.received_us < :before_us);

-- name: sessions_between
-- Sessions that were opened or ended in a span.
SELECT session FROM sessions
WHERE loan = :loan AND opened_us < :end_us AND (opened_us >= :begin_us OR ended_us >= :begin_us)
ORDER BY opened_us, session;

-- name: recovered_leases
-- The leases of a loan that reconciliations entered.
SELECT lease FROM events WHERE loan = :loan AND kind = 'lease.recovered';

-- name: events_between
-- Everything that was decided for a loan in a span, the oldest first.
SELECT number, time_us, kind, actor, loan, session, consumer, lease, detail
FROM events WHERE loan = :loan AND number > :after AND time_us >= :begin_us AND time_us < :end_us
ORDER BY number LIMIT :limit;

-- name: insert_grant
-- Keep why credits were made.
INSERT INTO grants (loan, consumer, credits, kind, lease, reason, actor, idempotency_key,
    created_us)
VALUES (:loan, :consumer, :credits, :kind, :lease, :reason, :actor, :idempotency_key,
    :created_us);

-- name: grant_of_key
-- The grant that a call with this idempotency key made.
SELECT loan, consumer, credits, kind, lease, reason, actor, idempotency_key, created_us
FROM grants WHERE idempotency_key = :idempotency_key;

-- name: grants_of_loan
-- The grants of a loan, the newest first.
SELECT loan, consumer, credits, kind, lease, reason, actor, idempotency_key, created_us
FROM grants WHERE loan = :loan ORDER BY number DESC LIMIT :limit;

-- name: insert_request
-- Keep a request for more.
INSERT INTO requests (request, loan, consumer, session, borrower, credits, reason, state, granted,
    decision_reason, created_us, decided_us)
VALUES (:request, :loan, :consumer, :session, :borrower, :credits, :reason, :state, :granted,
    :decision_reason, :created_us, :decided_us);

-- name: request
-- One request by its id.
SELECT request, loan, consumer, session, borrower, credits, reason, state, granted, decision_reason,
    created_us, decided_us
FROM requests WHERE request = :request;

-- name: open_request_of_consumer
-- The open request of a consumer, if any.
SELECT request, loan, consumer, session, borrower, credits, reason, state, granted, decision_reason,
    created_us, decided_us
FROM requests WHERE loan = :loan AND consumer = :consumer AND state = 'open';

-- name: open_request_of_borrower
-- The open request of a loan's borrower, if any.
SELECT request, loan, consumer, session, borrower, credits, reason, state, granted, decision_reason,
    created_us, decided_us
FROM requests WHERE loan = :loan AND consumer IS NULL AND state = 'open';

-- name: requests_of_loan
-- The requests of a loan, the newest first.
SELECT request, loan, consumer, session, borrower, credits, reason, state, granted, decision_reason,
    created_us, decided_us
FROM requests WHERE loan = :loan ORDER BY created_us DESC, request LIMIT :limit;

-- name: count_open_requests
-- How many requests of a loan nobody has decided on.
SELECT count(*) AS requests FROM requests WHERE loan = :loan AND state = 'open';

-- name: set_request_decision
-- Decide on an open request, once.
UPDATE requests SET state = :state, granted = :granted, decision_reason = :decision_reason,
    decided_us = :decided_us
WHERE request = :request AND state = 'open';

-- name: waiting_of_request
-- How many queries wait for what it asks, in living sessions, and since when the first one does;
-- once it is decided, how that was then.
SELECT COALESCE(SUM(waiting.queries), 0) AS queries, MIN(waiting.since_us) AS since_us
FROM waiting JOIN sessions ON sessions.session = waiting.session
    JOIN requests ON requests.request = waiting.request
WHERE waiting.request = :request AND (sessions.state = 'live' OR requests.state <> 'open');

-- name: set_waiting
-- What a session said last of who waits there.
INSERT INTO waiting (request, session, queries, since_us)
VALUES (:request, :session, :queries, :since_us)
ON CONFLICT (request, session) DO UPDATE SET queries = excluded.queries,
    since_us = excluded.since_us;

-- name: drop_waiting
-- Nobody waits there any more.
DELETE FROM waiting WHERE request = :request AND session = :session;

-- name: insert_stop_proof
-- Keep a proof of wiping as it came.
INSERT INTO stop_proofs (session, payload, signature, received_us)
VALUES (:session, :payload, :signature, :received_us);

-- name: stop_proof
-- The proof of a session.
SELECT session, payload, signature, received_us FROM stop_proofs WHERE session = :session;

-- name: insert_event
-- Append one event.
INSERT INTO events (time_us, kind, actor, loan, session, consumer, lease, detail)
VALUES (:time_us, :kind, :actor, :loan, :session, :consumer, :lease, :detail)
RETURNING number;

-- name: events_after
-- Events from a number on, the oldest first.
SELECT number, time_us, kind, actor, loan, session, consumer, lease, detail
FROM events WHERE number > :after AND (CAST(:loan AS TEXT) IS NULL OR loan = :loan)
ORDER BY number LIMIT :limit;

-- name: last_appraisal_of_session
-- What its newest evidence came to.
SELECT number, time_us, kind, actor, loan, session, consumer, lease, detail
FROM events WHERE loan = (SELECT loan FROM sessions WHERE session = :session)
    AND session = :session AND kind LIKE 'appraisal.%'
ORDER BY number DESC LIMIT 1;

-- name: last_events
-- The newest events, the newest first.
SELECT number, time_us, kind, actor, loan, session, consumer, lease, detail
FROM events WHERE (CAST(:loan AS TEXT) IS NULL OR loan = :loan)
ORDER BY number DESC LIMIT :limit;

-- name: log_head
-- The log's key and its newest tree.
SELECT origin, public_key, wrapped_key, certificate, size, edge, checkpoint FROM log_head;

-- name: insert_log_head
-- Begin the log.
INSERT INTO log_head (only_one, origin, public_key, wrapped_key, certificate, size, edge,
    checkpoint)
VALUES (1, :origin, :public_key, :wrapped_key, :certificate, :size, :edge, :checkpoint);

-- name: swap_log_head
-- Put a larger tree in the place of the one that it grew from, and of no other.
UPDATE log_head SET size = :size, edge = :edge, checkpoint = :checkpoint
WHERE size = :old_size AND checkpoint = :old_checkpoint;

-- name: events_to_log
-- Events that are not in the log yet, the oldest first. Blocks that write happen one after the
-- other, so no lower number appears after a higher one.
SELECT number, time_us, kind, actor, loan, session, consumer, lease, detail
FROM events WHERE number > (SELECT coalesce(max(event), 0) FROM log_entries)
ORDER BY number LIMIT :limit;

-- name: count_to_log
-- How many events are not in the log yet.
SELECT count(*) AS events FROM events
WHERE number > (SELECT coalesce(max(event), 0) FROM log_entries);

-- name: last_logged_event
-- The newest event that is in the log, 0 before the first.
SELECT coalesce(max(event), 0) AS event FROM log_entries;

-- name: insert_log_entry
-- Put an entry into the tree.
INSERT INTO log_entries (leaf, event, salt, entry) VALUES (:leaf, :event, :salt, :entry);

-- name: log_entries
-- Entries from a number on.
SELECT leaf, event, salt, entry FROM log_entries
WHERE leaf >= :first ORDER BY leaf LIMIT :limit;

-- name: log_entry_of_event
-- The entry that commits to an event.
SELECT leaf, event, salt, entry FROM log_entries WHERE event = :event;

-- name: event
-- One event by its number.
SELECT number, time_us, kind, actor, loan, session, consumer, lease, detail
FROM events WHERE number = :number;

-- name: last_event_of_kind
-- The newest event of a kind.
SELECT number, time_us, kind, actor, loan, session, consumer, lease, detail
FROM events WHERE kind = :kind ORDER BY number DESC LIMIT 1;

-- name: unsettled_leases_of_loan
-- Leases whose use is not known, the oldest first.
SELECT lease, session, loan, number, credits, duration_us, granted_us, expires_us, state, used,
    forfeited_us, refunded_us, written_off_us
FROM leases WHERE loan = :loan AND state IN ('open', 'forfeited') AND written_off_us IS NULL
ORDER BY granted_us, lease;

-- name: write_off_leases
-- From now on settlements of what is unsettled give nothing back.
UPDATE leases SET written_off_us = :now_us
WHERE loan = :loan AND state IN ('open', 'forfeited') AND written_off_us IS NULL;

-- name: last_lease_number
-- The highest report number of a session that was leased to, 0 when there is none.
SELECT coalesce(max(number), 0) AS number FROM leases WHERE session = :session;

-- name: unended_sessions_of_loan
-- Sessions that may come back, the oldest first.
SELECT session, loan, state, tls_spki_sha256, signing_key, hpke_key, tee, measurement, software,
    opened_us, disconnected_us, ended_us, end_reason, last_report, report_sha256, decision,
    replica, model
FROM sessions WHERE loan = :loan AND state <> 'ended' ORDER BY opened_us, session;

-- name: incarnations
-- The lives of this ledger, the first first.
SELECT incarnation FROM incarnations ORDER BY number;

-- name: begin_incarnation
-- Begin another life.
INSERT INTO incarnations (number, incarnation, began_us)
SELECT coalesce(max(number), 0) + 1, :incarnation, :began_us FROM incarnations;

-- name: life
-- The present life of this ledger, and why nothing may be leased, if so.
SELECT (SELECT incarnation FROM incarnations ORDER BY number DESC LIMIT 1) AS incarnation,
    (SELECT code FROM hold) AS code, (SELECT reason FROM hold) AS reason,
    (SELECT since_us FROM hold) AS since_us;

-- name: set_hold
-- Hold; the reason that was found first stays.
INSERT INTO hold (only_one, code, reason, since_us) VALUES (1, :code, :reason, :since_us)
ON CONFLICT (only_one) DO NOTHING;

-- name: lift_hold
-- Let leases be granted again.
DELETE FROM hold;

-- name: insert_handed_in
-- Keep a settlement that came while the ledger was held.
INSERT INTO handed_in (lease, session, loan, payload, signature, statement_payload,
    statement_signature, received_us)
VALUES (:lease, :session, :loan, :payload, :signature, :statement_payload, :statement_signature,
    :received_us);

-- name: handed_in
-- What came while the ledger was held.
SELECT lease, session, loan, payload, signature, statement_payload, statement_signature,
    received_us
FROM handed_in ORDER BY loan, session, lease;

-- name: handed_in_of_lease
-- What came for one lease.
SELECT lease, session, loan, payload, signature, statement_payload, statement_signature,
    received_us
FROM handed_in WHERE lease = :lease;

-- name: forget_handed_in
-- It was reconciled: settlements and events hold it now.
DELETE FROM handed_in;

-- name: insert_webhook
-- Keep a webhook.
INSERT INTO webhooks (webhook, url, wrapped_secret, created_us, removed_us)
VALUES (:webhook, :url, :wrapped_secret, :created_us, :removed_us);

-- name: insert_webhook_kind
-- Keep one kind of event that it is told of.
INSERT INTO webhook_kinds (webhook, kind) VALUES (:webhook, :kind);

-- name: webhooks
-- Those that were not removed, the oldest first.
SELECT webhook, url, wrapped_secret, created_us, removed_us FROM webhooks
WHERE removed_us IS NULL ORDER BY created_us, webhook;

-- name: webhook
-- One webhook, removed or not.
SELECT webhook, url, wrapped_secret, created_us, removed_us FROM webhooks WHERE webhook = :webhook;

-- name: webhook_kinds
-- What it is told of.
SELECT kind FROM webhook_kinds WHERE webhook = :webhook ORDER BY kind;

-- name: remove_webhook
-- Tell it nothing more.
UPDATE webhooks SET removed_us = :removed_us WHERE webhook = :webhook AND removed_us IS NULL;

-- name: drop_deliveries
-- What a removed webhook was still to be told.
UPDATE deliveries SET state = 'dead', answer = 'the webhook was removed'
WHERE webhook = :webhook AND state = 'waiting';

-- name: queue_deliveries
-- An event for every webhook that is told of its kind.
INSERT INTO deliveries (webhook, message, kind, body, created_us, due_us)
SELECT webhooks.webhook, :message, :kind, :body, :now_us, :now_us
FROM webhooks JOIN webhook_kinds ON webhook_kinds.webhook = webhooks.webhook
WHERE webhook_kinds.kind = :kind AND webhooks.removed_us IS NULL;

-- name: queue_delivery
-- A message for one webhook.
INSERT INTO deliveries (webhook, message, kind, body, created_us, due_us)
VALUES (:webhook, :message, :kind, :body, :now_us, :now_us);

-- name: due_deliveries
-- The first that waits for each webhook, if it is due and nobody delivers it now.
SELECT number, webhook, message, kind, body, created_us, due_us, tries, state, answer
FROM deliveries
WHERE state = 'waiting' AND due_us <= :now_us AND (claimed_us IS NULL OR claimed_us <= :now_us)
    AND NOT EXISTS (
        SELECT 1 FROM deliveries AS earlier WHERE earlier.webhook = deliveries.webhook
            AND earlier.state = 'waiting' AND earlier.number < deliveries.number)
ORDER BY number LIMIT :limit;

-- name: claim_delivery
-- Deliver it here until then; nobody else does.
UPDATE deliveries SET claimed_us = :until_us
WHERE number = :number AND state = 'waiting' AND (claimed_us IS NULL OR claimed_us <= :now_us);

-- name: set_delivery
-- Note what came of a try.
UPDATE deliveries SET state = :state, tries = :tries, due_us = :due_us, answer = :answer,
    claimed_us = NULL
WHERE number = :number AND state = 'waiting';

-- name: count_deliveries
-- How many deliveries of a webhook are in which state.
SELECT state, count(*) AS deliveries FROM deliveries WHERE webhook = :webhook GROUP BY state;

-- name: last_answer
-- What its last tries came to, the newest first.
SELECT answer FROM deliveries WHERE webhook = :webhook AND answer <> ''
ORDER BY number DESC LIMIT 1;

-- name: low_mark
-- Below how many credits a loan is low, and whether it was said that it is.
SELECT credits, low FROM low_marks WHERE loan = :loan;

-- name: set_low_mark
-- Say below how many, or that it is low.
INSERT INTO low_marks (loan, credits, low) VALUES (:loan, :credits, :low)
ON CONFLICT (loan) DO UPDATE SET credits = excluded.credits, low = excluded.low;

-- name: drop_low_mark
-- No such limit any more.
DELETE FROM low_marks WHERE loan = :loan;

-- name: last_grant
-- The highest number of a grant.
SELECT coalesce(max(number), 0) AS number FROM grants;

-- name: grants_after
-- Grants from a number on, each with its place in its loan and the credits made up to it.
SELECT number, loan, consumer, credits, kind, created_us,
    (SELECT count(*) FROM grants AS before
        WHERE before.loan = grants.loan AND before.number <= grants.number) AS place,
    (SELECT coalesce(sum(before.credits), 0) FROM grants AS before
        WHERE before.loan = grants.loan AND before.consumer IS NULL
        AND before.number <= grants.number) AS granted
FROM grants WHERE number > :after ORDER BY number LIMIT :limit;

-- name: unseen_grants
-- Grants of a loan that no enclave has counter-signed.
SELECT number, loan, consumer, credits, kind, created_us,
    (SELECT count(*) FROM grants AS before
        WHERE before.loan = grants.loan AND before.number <= grants.number) AS place,
    (SELECT coalesce(sum(before.credits), 0) FROM grants AS before
        WHERE before.loan = grants.loan AND before.consumer IS NULL
        AND before.number <= grants.number) AS granted
FROM grants WHERE loan = :loan
    AND NOT EXISTS (SELECT 1 FROM grant_seen WHERE grant_seen.number = grants.number)
ORDER BY number LIMIT :limit;

-- name: told_grants
-- The grants of a loan as the borrower is told of them, the newest first.
SELECT number, loan, consumer, credits, kind, created_us,
    (SELECT count(*) FROM grants AS before
        WHERE before.loan = grants.loan AND before.number <= grants.number) AS place,
    (SELECT coalesce(sum(before.credits), 0) FROM grants AS before
        WHERE before.loan = grants.loan AND before.consumer IS NULL
        AND before.number <= grants.number) AS granted
FROM grants WHERE loan = :loan ORDER BY number DESC LIMIT :limit;

-- name: told_between
-- The grants of a loan that were made in a span as the borrower is told of them, the oldest first.
SELECT number, loan, consumer, credits, kind, created_us, place, granted
FROM (SELECT number, loan, consumer, credits, kind, created_us,
        count(*) OVER (ORDER BY number) AS place,
        sum(CASE WHEN consumer IS NULL THEN credits ELSE 0 END) OVER (ORDER BY number) AS granted
    FROM grants WHERE loan = :loan) AS told
WHERE created_us >= :begin_us AND created_us < :end_us ORDER BY number;

-- name: told_grant
-- One grant.
SELECT number, loan, consumer, credits, kind, created_us,
    (SELECT count(*) FROM grants AS before
        WHERE before.loan = grants.loan AND before.number <= grants.number) AS place,
    (SELECT coalesce(sum(before.credits), 0) FROM grants AS before
        WHERE before.loan = grants.loan AND before.consumer IS NULL
        AND before.number <= grants.number) AS granted
FROM grants WHERE number = :number;

-- name: grant_seen
-- The counter-signature under the notice of a grant.
SELECT number, session, payload, signature, received_us FROM grant_seen WHERE number = :number;

-- name: insert_grant_seen
-- Keep the counter-signature under the notice of a grant.
INSERT INTO grant_seen (number, session, payload, signature, received_us)
VALUES (:number, :session, :payload, :signature, :received_us);

-- name: insert_borrower
-- Keep a borrower's token, by its hash.
INSERT INTO borrower_tokens (borrower, loan, note, token_sha256, created_us, revoked_us)
VALUES (:borrower, :loan, :note, :token_sha256, :created_us, :revoked_us);

-- name: borrower
-- One borrower's token, revoked or not.
SELECT borrower, loan, note, token_sha256, created_us, revoked_us FROM borrower_tokens
WHERE borrower = :borrower;

-- name: borrower_of_token
-- Whose token it is, if it opens anything.
SELECT borrower, loan, note, token_sha256, created_us, revoked_us FROM borrower_tokens
WHERE token_sha256 = :token_sha256 AND revoked_us IS NULL;

-- name: borrowers_of_loan
-- The tokens of a loan's borrower, the newest first.
SELECT borrower, loan, note, token_sha256, created_us, revoked_us FROM borrower_tokens
WHERE loan = :loan ORDER BY created_us DESC, borrower LIMIT :limit;

-- name: revoke_borrower
-- It opens nothing more.
UPDATE borrower_tokens SET revoked_us = :revoked_us
WHERE borrower = :borrower AND revoked_us IS NULL;
