-- Fields that are new are filled into the rows of a version that is fed, in place.
-- Adds columns (ACCESS EXCLUSIVE for a moment, no rewrite) and a wider check on a
-- table of a few rows.
-- +goose Up
alter table refold.projection_version
    add column next_definition text,            -- what the version is fed by while its rows are completed; readers keep definition
    add column next_plan       text collate "C";-- hash of its plan; null: by definition and plan

alter table refold.rebuild
    add column kind text collate "C" not null default 'version' check (kind in ('version', 'fields', 'indexes')), -- what is made: a fresh version, or fields or indexes of the one that serves
    drop constraint rebuild_step_check,
    add constraint rebuild_step_check check (step in ('preflight', 'load', 'index', 'check', 'catch up', 'rehearse', 'fill', 'verify', 'promote', 'done'));
