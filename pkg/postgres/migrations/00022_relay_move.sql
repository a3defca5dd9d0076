-- Moving a cursor looks up each event that it speaks of, one by one: as an anti join
-- a planner without statistics read the whole category for it, ten times a second for
-- each partition. For the rest it is as before.
-- +goose Up
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
        where u.seq > u.before and u.id is distinct from (select e.id from refold.event e where e.category = p_category and e.slot = u.slot and e.seq = u.seq);
    if lost is not null then
        raise exception 'relayed and not in the event table: %', lost using errcode = 'RF002';
    end if;
end
$$;
-- +goose StatementEnd
