package avro

import (
	"fmt"

	hamba "github.com/hamba/avro/v2"
)

// goCodec refuses slices and byte strings that a payload could not hold: the
// scanner has looked at it before, so this is the second line.
var goCodec = hamba.Config{TagKey: "avro", MaxByteSliceSize: 1 << 20, MaxSliceAllocSize: 1 << 20}.Freeze()

// EncodeGo appends v, a Go struct whose fields are named by `avro` tags, to dst
// in Avro. What it writes is scanned, so that nothing enters the log that
// readers would refuse, such as text that is not valid UTF-8.
func (s *Schema) EncodeGo(dst []byte, v any) ([]byte, error) {
	raw, err := marshal(s, v)
	if err != nil {
		return nil, fmt.Errorf("encoding %T as %s: %w", v, s.Name(), err)
	}
	if err := s.Scan(raw); err != nil {
		return nil, fmt.Errorf("encoding %T as %s: %w", v, s.Name(), err)
	}
	return append(dst, raw...), nil
}

// marshal calls the codec, which panics for a decimal that is nil.
func marshal(s *Schema, v any) (raw []byte, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the codec panicked: %v", p)
		}
	}()
	return goCodec.Marshal(s.parsed, v)
}

// DecodeGo decodes a payload into v, a pointer to a Go struct whose fields are
// named by `avro` tags. The payload is scanned first.
func (s *Schema) DecodeGo(payload []byte, v any) error {
	if err := s.Scan(payload); err != nil {
		return err
	}
	if err := goCodec.Unmarshal(s.parsed, payload, v); err != nil {
		return fmt.Errorf("decoding %s into %T: %w", s.Name(), v, err)
	}
	return nil
}
