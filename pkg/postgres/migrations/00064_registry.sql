-- Which levels of compatibility came from contracts, so that they go with them. A
-- column with a constant default, which rewrites nothing.
-- +goose Up
alter table refold.registry_config add column contract boolean not null default false;
