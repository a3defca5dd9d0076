-- Leases: who may do what only one may do, by the database's clock.
-- A new table and a new function only, so no lock that anybody could wait for.
-- +goose Up
create table refold.lease (
    name    text collate "C" primary key,
    owner   text        not null,            -- for people
    fence   bigint      not null,            -- rises with every change of hands, never falls
    nonce   uuid        not null,            -- tells two holders with one fence apart, after a lost tail
    expires timestamptz not null
) with (fillfactor = 50, autovacuum_vacuum_threshold = 200, autovacuum_vacuum_scale_factor = 0);

-- Raises RF001 unless the lease is still in these hands, and keeps it there until
-- the transaction ends. It raises, instead of answering, so that what stands
-- behind it in a pipeline does not run.
-- +goose StatementBegin
create function refold.check_lease(lease_name text, lease_fence bigint, lease_nonce uuid) returns void
    language plpgsql volatile
    set search_path = ''
as $$
begin
    perform from refold.lease l
        where l.name = lease_name and l.fence = lease_fence and l.nonce = lease_nonce
        for share;
    if not found then
        raise exception 'lease % is in other hands', lease_name using errcode = 'RF001';
    end if;
end
$$;
-- +goose StatementEnd
