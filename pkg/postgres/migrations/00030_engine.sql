-- The engine: slots that stop alone, counters that add up where events come from
-- the event table, claims that only continue a claim, and answers to requests.
-- Two columns with constant defaults on refold.progress (ACCESS EXCLUSIVE for a
-- moment, no rewrite); functions are replaced.
-- +goose Up
alter table refold.progress
    add column filled bigint not null default 0,  -- of the events that are counted: taken from the event table, without a record
    add column held   bigint not null default 0;  -- records that were passed over because their slot was stopped

-- Takes a partition of a projection version over: waits for the transaction of a
-- former owner, which holds the row, and reads what that one committed. Given the
-- epoch of a former claim it continues that one only, RF010 when somebody else has
-- claimed since; 0 takes it from whoever has it. It waits three seconds and then
-- raises 55P03: the caller ends the backend that is in the way.
drop function refold.progress_claim(text, integer, text, integer, integer, text, uuid);
-- +goose StatementBegin
create function refold.progress_claim(p_projection text, p_version integer, p_category text, p_generation integer, p_partition integer,
    p_owner text, p_topic uuid, p_former bigint, out epoch bigint, out next bigint, out slot_list smallint[], out seq_list bigint[], out id_list uuid[], out topic uuid,
    out stopped_list jsonb)
    language plpgsql volatile
    set search_path = ''
    set lock_timeout = '3s'
as $$
begin
    update refold.progress set owner_epoch = owner_epoch + 1, owner = p_owner, owner_pid = pg_backend_pid(), topic_id = coalesce(topic_id, p_topic),
        owner_start = (select a.backend_start from pg_stat_activity a where a.pid = pg_backend_pid())
        where projection = p_projection and version = p_version and category = p_category and generation = p_generation and partition = p_partition and phase = 'live'
          and (p_former = 0 or owner_epoch = p_former)
        returning owner_epoch, next_offset, slots, seqs, last_ids, topic_id, stopped into epoch, next, slot_list, seq_list, id_list, topic, stopped_list;
    if found then
        return;
    end if;
    perform from refold.progress
        where projection = p_projection and version = p_version and category = p_category and generation = p_generation and partition = p_partition and phase = 'live';
    if found then
        raise exception 'partition % of % version % has another owner', p_partition, p_projection, p_version using errcode = 'RF010';
    end if;
    raise exception 'no live progress of % version % for partition % of %', p_projection, p_version, p_partition, p_category using errcode = 'RF011';
end
$$;
-- +goose StatementEnd

-- The compare-and-set at the head of every batch. It raises, so that nothing
-- behind it in the pipeline runs, when another owner has taken the partition.
-- Counts are what is added; p_stopped is null where no slot stops or goes on.
drop function refold.progress_move(text, integer, text, integer, integer, bigint, bigint, bigint, bigint[], uuid[], bigint, bigint, bigint, bigint, bigint, timestamptz);
-- +goose StatementBegin
create function refold.progress_move(p_projection text, p_version integer, p_category text, p_generation integer, p_partition integer,
    p_epoch bigint, p_from bigint, p_to bigint, p_seqs bigint[], p_ids uuid[], p_applied bigint, p_duplicates bigint, p_filtered bigint, p_parked bigint,
    p_skipped bigint, p_foreign bigint, p_filled bigint, p_held bigint, p_stopped jsonb, p_last timestamptz) returns void
    language plpgsql volatile
    set search_path = ''
as $$
begin
    update refold.progress set next_offset = p_to, seqs = p_seqs, last_ids = p_ids, applied = applied + p_applied, duplicates = duplicates + p_duplicates,
        filtered = filtered + p_filtered, parked = parked + p_parked, skipped = skipped + p_skipped, foreign_records = foreign_records + p_foreign,
        filled = filled + p_filled, held = held + p_held, stopped = coalesce(p_stopped, stopped),
        last_applied = coalesce(p_last, last_applied), alarm = null, updated = clock_timestamp()
        where projection = p_projection and version = p_version and category = p_category and generation = p_generation and partition = p_partition
          and phase = 'live' and owner_epoch = p_epoch and next_offset = p_from;
    if not found then
        raise exception 'partition % of % version % has another owner', p_partition, p_projection, p_version using errcode = 'RF010';
    end if;
end
$$;
-- +goose StatementEnd

-- Notes what came of a request in one version, once (RF012 when it was noted
-- before), and ends the request when no fed version is left that has the stream
-- parked and has not answered.
-- +goose StatementBegin
create function refold.request_answer(p_id bigint, p_version integer, p_outcome text) returns void
    language plpgsql volatile
    set search_path = ''
as $$
begin
    update refold.row_request set outcomes = outcomes || jsonb_build_object(p_version::text, p_outcome) where id = p_id and not outcomes ? p_version::text;
    if not found then
        raise exception 'request % is answered by version % already', p_id, p_version using errcode = 'RF012';
    end if;
    perform refold.request_end(p_id);
end
$$;

-- Ends a request that nobody is left to answer. A statement of its own, so that it
-- sees what the versions before it have committed.
create function refold.request_end(p_id bigint) returns void
    language sql volatile
    set search_path = ''
as $$
    update refold.row_request r set done = clock_timestamp() where r.id = p_id and r.done is null and not exists (
        select from refold.parked_stream p join refold.projection_version v on v.projection = p.projection and v.version = p.version and v.state in ('ready', 'active')
        where p.projection = r.projection and p.category = r.category and p.stream = r.stream and not r.outcomes ? p.version::text)
$$;
-- +goose StatementEnd

-- Versions that have skipped the event and not yet applied all that waited behind
-- it: {"1": true}. So a second attempt does not skip another one.
alter table refold.row_request add column begun jsonb not null default '{}';
