-- Slots that the relay has stopped, each by itself. A new table, and a function
-- made anew: no lock that anybody could wait for.
-- +goose Up
create table refold.relay_stop (
    category     smallint not null,
    generation   integer  not null,
    slot         smallint not null,
    seq          bigint   not null,   -- the first event that is not relayed
    kind         text     not null check (kind in ('refused', 'diverged')),
    event        uuid,                -- what the event table has at seq
    topic_event  uuid,                -- what the topic has there, if they differ
    topic_offset bigint,              -- and where
    reason       text     not null,
    since        timestamptz not null default clock_timestamp(),
    primary key (category, generation, slot)
);

-- Moves a cursor after acknowledgements. Raises, so that nothing behind it in the
-- pipeline runs: RF001 when the partition is in other hands, RF002 when an event
-- that was sent is not in the table (any more), RF003 when the server is another
-- incarnation than the one that was read from. Only slots that moved are proved.
-- +goose StatementBegin
create or replace function refold.relay_move(p_timeline bigint, p_started timestamptz, p_category smallint, p_generation integer, p_partition integer,
    p_fence bigint, p_nonce uuid, p_slots smallint[], p_seqs bigint[], p_ids uuid[], p_compared bigint, p_foreign bigint) returns void
    language plpgsql volatile
    set search_path = ''
as $$
declare
    before bigint[];
    lost text;
begin
    if ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::bigint <> p_timeline or pg_postmaster_start_time() <> p_started then
        raise exception 'the server is another incarnation' using errcode = 'RF003';
    end if;
    select seqs into before from refold.relay_partition
        where category = p_category and generation = p_generation and partition = p_partition and fence = p_fence and nonce = p_nonce and slots = p_slots
        for no key update;
    if not found then
        raise exception 'partition % of category % is in other hands', p_partition, p_category using errcode = 'RF001';
    end if;
    update refold.relay_partition set seqs = p_seqs, ids = p_ids, compared = p_compared, foreign_records = foreign_records + p_foreign
        where category = p_category and generation = p_generation and partition = p_partition;
    select string_agg(format('slot %s seq %s id %s', u.slot, u.seq, u.id), ', ') into lost
        from unnest(p_slots, p_seqs, p_ids, before) u (slot, seq, id, before)
        where u.seq > u.before and not exists (select from refold.event e where e.category = p_category and e.slot = u.slot and e.seq = u.seq and e.id = u.id);
    if lost is not null then
        raise exception 'relayed and not in the event table: %', lost using errcode = 'RF002';
    end if;
end
$$;
-- +goose StatementEnd
