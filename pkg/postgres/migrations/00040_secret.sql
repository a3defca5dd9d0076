-- Keys that all processes share and no client sees: that of cursors. A new table
-- and a new function only, so no lock that anybody could wait for.
-- +goose Up
create table refold.secret (
    name  text collate "C" primary key,
    value bytea not null
);

-- Returns a secret; the first who asks sets it.
-- +goose StatementBegin
create function refold.secret(p_name text, p_fresh bytea) returns bytea
    language plpgsql volatile
    set search_path = ''
as $$
declare
    found_value bytea;
begin
    select s.value into found_value from refold.secret s where s.name = p_name;
    if found_value is null then
        insert into refold.secret (name, value) values (p_name, p_fresh) on conflict do nothing;
        select s.value into found_value from refold.secret s where s.name = p_name;
    end if;
    return found_value;
end
$$;
-- +goose StatementEnd
