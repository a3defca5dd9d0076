package event

// Defaults of a category whose contract does not say otherwise.
const (
	DefaultSlots      = 64
	DefaultPartitions = 8
)

// MaxSlots bounds the slots of a category, so that a slot fits a smallint.
const MaxSlots = 4096

// SlotOf returns the slot of a stream among slots, a power of two: Kafka's
// murmur2 of the id, made positive, modulo slots. As the partitions of a topic
// divide the slots, [PartitionOf] this slot is the partition that Kafka's
// default partitioner chooses for the same key
// (org.apache.kafka.clients.producer.internals.BuiltInPartitioner).
func SlotOf(stream string, slots int) int {
	return int(murmur2(stream)&0x7fffffff) % slots
}

// PartitionOf returns the partition of a slot in a topic of so many partitions.
func PartitionOf(slot, partitions int) int { return slot % partitions }

// murmur2 is Kafka's variant of Austin Appleby's MurmurHash2 with the seed
// 0x9747b28c (org.apache.kafka.common.utils.Utils.murmur2).
func murmur2(key string) uint32 {
	const (
		m = 0x5bd1e995
		r = 24
	)
	n := len(key)
	h := uint32(0x9747b28c) ^ uint32(n)
	for len(key) >= 4 {
		k := uint32(key[0]) | uint32(key[1])<<8 | uint32(key[2])<<16 | uint32(key[3])<<24
		k *= m
		k ^= k >> r
		k *= m
		h = h*m ^ k
		key = key[4:]
	}
	switch len(key) {
	case 3:
		h ^= uint32(key[2]) << 16
		fallthrough
	case 2:
		h ^= uint32(key[1]) << 8
		fallthrough
	case 1:
		h ^= uint32(key[0])
		h *= m
	}
	h ^= h >> 13
	h *= m
	return h ^ h>>15
}
