"""Reads a refold topic with Confluent's own client, as any team's service would.

usage: consume.py BROKERS REGISTRY_URL TOPIC COUNT

Prints one JSON line per record: key, partition, headers, and the value as
AvroDeserializer gives it; then registers a schema through the registry client,
reads it back, and prints what came of it.
"""
import json
import sys

from confluent_kafka import Consumer
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer
from confluent_kafka.schema_registry.error import SchemaRegistryError
from confluent_kafka.serialization import MessageField, SerializationContext

ORDER = """{"type": "record", "name": "OrderPlaced", "namespace": "shop",
            "fields": [{"name": "number", "type": "long"}, {"name": "note", "type": ["null", "string"], "default": null}]}"""


def consume(brokers, registry, topic, count):
    deserialize = AvroDeserializer(registry)
    consumer = Consumer({"bootstrap.servers": brokers, "group.id": topic + ".confluent", "auto.offset.reset": "earliest",
                         "enable.auto.commit": False})
    consumer.subscribe([topic])
    try:
        while count > 0:
            message = consumer.poll(30)
            if message is None:
                sys.exit("no record within 30 s")
            if message.error():
                sys.exit(str(message.error()))
            value = deserialize(message.value(), SerializationContext(topic, MessageField.VALUE))
            print(json.dumps({"key": message.key().decode(), "partition": message.partition(), "value": value,
                              "timestamp": message.timestamp()[1],
                              "headers": {k: v.decode() for k, v in message.headers()}}, default=str))
            count -= 1
    finally:
        consumer.close()


def register(registry):
    subject = "shop.orders-value"
    schema = Schema(ORDER, "AVRO")
    first = registry.register_schema(subject, schema)
    again = registry.register_schema(subject, schema)
    latest = registry.get_latest_version(subject)
    try:
        registry.get_latest_version("no-such-subject")
        missing = 0
    except SchemaRegistryError as e:
        missing = e.error_code
    print(json.dumps({"id": first, "again": again, "latest": latest.schema_id, "version": latest.version,
                      "subjects": registry.get_subjects(), "by_id": json.loads(registry.get_schema(first).schema_str)["name"],
                      "missing": missing}))


def main():
    brokers, url, topic, count = sys.argv[1:]
    registry = SchemaRegistryClient({"url": url})
    consume(brokers, registry, topic, int(count))
    register(registry)


main()
