-- Which request about a parked stream is the newest, which slots are stopped, and
-- keys that the commands of reactions need. Nullable columns only.
-- +goose Up
alter table refold.reaction_parked add column asked uuid;               -- names the request
alter table refold.reaction_progress add column stopped timestamptz;    -- since when the log does not go on behind event
alter table refold.reaction_progress add column reason text;            -- why somebody has set the place last

-- Whether a command of a reaction may be run again under its key, which is
-- reaction/<name>/<event>/<number>: its event is not dealt with for good. Any other
-- key is of no reaction.
-- +goose StatementBegin
create function refold.reaction_needs(key text) returns boolean
    language plpgsql stable
    set search_path = ''
as $$
begin
    return key ~ '^reaction/[a-z0-9-]+/[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}/[0-9]+$' and exists (
        select from refold.event e
            join refold.category c on c.id = e.category
            join refold.reaction_progress p on p.reaction = split_part(key, '/', 2) and p.category = c.name and p.slot = e.slot
            where e.id = split_part(key, '/', 3)::uuid and (p.seq < e.seq or exists (
                select from refold.reaction_parked k where k.reaction = p.reaction and k.category = p.category and k.stream = e.stream and k.version <= e.version)));
end
$$;
-- +goose StatementEnd
