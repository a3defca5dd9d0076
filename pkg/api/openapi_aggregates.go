package api

import (
	"encoding/json"
	"fmt"
	"maps"

	"github.com/refoldhq/refold/pkg/aggregate"
)

// object is a part of an OpenAPI document.
type object = map[string]any

// withAggregates adds the operations of aggregates to a document: each command
// as a path of its own, with the schema of its body.
func withAggregates(document []byte, commands []aggregate.CommandInfo) ([]byte, error) {
	var doc object
	if err := json.Unmarshal(document, &doc); err != nil {
		return nil, fmt.Errorf("reading the OpenAPI document: %w", err)
	}
	paths := doc["paths"].(object) // it is ours
	for _, c := range commands {
		paths["/v1/commands/"+c.Category+"/{id}/"+c.Name] = object{"post": commandOperation(c)}
	}
	for path, operation := range aggregateOperations() {
		paths[path] = object{"get": operation}
	}
	maps.Copy(paths, reactionPaths())
	return json.MarshalIndent(doc, "", " ")
}

func commandOperation(c aggregate.CommandInfo) object {
	summary := "Run the command " + c.Name + " on a " + c.Category + " that exists"
	if c.Creates {
		summary = "Create a " + c.Category + " by the command " + c.Name
	}
	return object{
		"operationId": c.Name + c.Category, "summary": summary, "tags": []string{c.Category},
		"parameters": []object{
			parameter("id", "path", "id of the aggregate's stream"),
			parameter("Idempotency-Key", "header", "1 to 255 printable ASCII characters; a retry with the same key, path, If-Match and body gets the first answer"),
			parameter("If-Match", "header", `"<version>" that the aggregate must have, or * for any`),
			parameter("Refold-Actor", "header", "who acts"),
			parameter("Refold-Correlation-Id", "header", "what it belongs to"),
			parameter("Refold-Causation-Id", "header", "id of the event, or of the message, that caused it"),
		},
		"requestBody": object{"required": true, "content": object{"application/json": object{"schema": c.Schema}}},
		"responses": responses(object{
			"201": object{"description": "events were stored", "content": jsonContent(commandDone)},
			"200": object{"description": "a replay, or the command changed nothing", "content": jsonContent(commandDone)},
		}, "400", "404", "409", "413", "415", "422", "503"),
	}
}

var commandDone = object{"type": "object", "required": []string{"category", "stream", "version", "token", "events"}, "properties": object{
	"category": object{"type": "string"}, "stream": object{"type": "string"},
	"version": object{"type": "integer", "format": "int64"},
	"token":   object{"type": "string", "description": "for reads that must see the events; empty when there are none"},
	"events":  object{"type": "array", "items": object{"$ref": "#/components/schemas/AppendedEvent"}},
}}

// aggregateOperations are those that only read.
func aggregateOperations() map[string]object {
	category, id := parameter("category", "path", ""), parameter("id", "path", "id of the aggregate's stream")
	of := func(name, summary string, answer object, more ...object) object {
		return object{"operationId": name, "summary": summary, "parameters": append([]object{category, id}, more...),
			"responses": responses(object{"200": object{"description": "the answer", "content": jsonContent(answer)}}, "400", "404", "503")}
	}
	state := object{"type": "object", "description": "the aggregate's fields"}
	changes := object{"type": "array", "items": object{"type": "object", "required": []string{"path"}, "properties": object{
		"path": object{"type": "string", "description": "JSON pointer"}, "from": object{}, "to": object{}}}}
	version := object{"type": "integer", "format": "int64"}
	event := object{"$ref": "#/components/schemas/Event"}
	causation := object{"operationId": "getCausation", "summary": "What led to an event and what it caused, across streams", "parameters": []object{parameter("id", "path", "id of the event")},
		"responses": responses(object{"200": object{"description": "the chain", "content": jsonContent(object{"type": "object", "properties": object{
			"event": event, "origin": object{"type": []string{"string", "null"}, "description": "a causation id that names no event"},
			"causes":    object{"type": "array", "items": event, "description": "the first cause first"},
			"effects":   object{"type": "array", "items": object{"type": "object", "properties": object{"depth": object{"type": "integer"}, "event": event}}},
			"truncated": object{"type": "boolean"}}})}}, "400", "404", "409", "503")}
	commands := object{"operationId": "listCommands", "summary": "All commands with the JSON Schemas of their bodies", "parameters": []object{},
		"responses": responses(object{"200": object{"description": "the commands", "content": jsonContent(object{"type": "array", "items": object{"type": "object"}})}}, "400")}
	return map[string]object{
		"/v1/commands":              commands,
		"/v1/events/{id}/causation": causation,
		"/v1/aggregates/{category}/{id}": of("getAggregate", "An aggregate's state, now or then",
			object{"type": "object", "properties": object{"category": object{"type": "string"}, "stream": object{"type": "string"}, "version": version,
				"recorded": object{"type": "string", "format": "date-time"}, "state": state}},
			parameter("version", "query", "the state after this event"), parameter("at", "query", "the state at this time, RFC 3339, by when events were recorded")),
		"/v1/aggregates/{category}/{id}/diff": of("diffAggregate", "What changed between two versions",
			object{"type": "object", "properties": object{"category": object{"type": "string"}, "stream": object{"type": "string"}, "from": version, "to": version, "changes": changes}},
			object{"name": "from", "in": "query", "required": true, "description": "a version; 0 is before the first event", "schema": object{"type": "string"}},
			parameter("to", "query", "a version; the present one when left out")),
		"/v1/aggregates/{category}/{id}/audit": of("auditAggregate", "Who did what, when and why, and what it changed",
			object{"type": "object", "properties": object{"category": object{"type": "string"}, "stream": object{"type": "string"}, "next": object{"type": []string{"integer", "null"}},
				"entries": object{"type": "array", "items": object{"allOf": []object{event, {"type": "object", "properties": object{"changes": changes}}}}}}},
			parameter("after", "query", "the version before the first entry"), parameter("limit", "query", "1 to 1000; 100 when left out")),
	}
}

// reactionPaths are those of package reaction.
func reactionPaths() object {
	name := parameter("name", "path", "name of the reaction")
	list := jsonContent(object{"type": "array", "items": object{"type": "object"}})
	return object{
		"/v1/reactions": object{"get": object{"operationId": "listReactions", "summary": "Reactions, how far they are behind, how many streams they have parked, and how many slots are stopped",
			"responses": responses(object{"200": object{"description": "the reactions", "content": list}}, "503")}},
		"/v1/reactions/{name}/parked": object{"get": object{"operationId": "listParkedByReaction", "summary": "Streams whose event could not be handled", "parameters": []object{name},
			"responses": responses(object{"200": object{"description": "the streams", "content": list}}, "503")}},
		"/v1/reactions/{name}/parked/{stream}/{action}": object{"post": object{"operationId": "decideAboutParked", "summary": "Have a parked stream go on, with or without its event",
			"parameters": []object{name, parameter("stream", "path", "category/id, percent-encoded"), {"name": "action", "in": "path", "required": true, "schema": object{"enum": []string{"retry", "skip"}}}},
			"requestBody": object{"required": true, "content": jsonContent(object{"type": "object", "required": []string{"reason"}, "additionalProperties": false,
				"properties": object{"reason": object{"type": "string", "minLength": 1},
					"version": object{"type": []string{"integer", "string"}, "format": "int64", "description": "of the event where the stream is parked; another one is a 409 parked-elsewhere"}}})},
			"responses": responses(object{"202": object{"description": "it was asked for"}}, "400", "404", "409", "413", "503")}},
		"/v1/reactions/{name}/stopped": object{"get": object{"operationId": "listStoppedSlots", "summary": "Slots whose log does not go on behind what was handled", "parameters": []object{name},
			"responses": responses(object{"200": object{"description": "the slots", "content": list}}, "503")}},
		"/v1/reactions/{name}/stopped/{category}/{slot}/resume": object{"post": object{"operationId": "resumeStoppedSlot", "summary": "Have a stopped slot go on behind an event, which counts as handled with all before it",
			"parameters": []object{name, parameter("category", "path", ""), parameter("slot", "path", "")},
			"requestBody": object{"required": true, "content": jsonContent(object{"type": "object", "required": []string{"after", "reason"}, "additionalProperties": false,
				"properties": object{"reason": object{"type": "string", "minLength": 1}, "after": object{"type": []string{"integer", "string"}, "format": "int64", "description": "the seq of that event; 0 for the beginning"}}})},
			"responses": responses(object{"202": object{"description": "the process that runs the reaction goes on"}}, "400", "404", "413", "422", "503")}},
	}
}

func parameter(name, in, description string) object {
	p := object{"name": name, "in": in, "required": in == "path", "schema": object{"type": "string"}}
	if description != "" {
		p["description"] = description
	}
	return p
}

func jsonContent(schema object) object {
	return object{"application/json": object{"schema": schema}}
}

// responses adds those that are problems.
func responses(good object, problems ...string) object {
	for _, status := range problems {
		good[status] = object{"$ref": "#/components/responses/Problem"}
	}
	return good
}
