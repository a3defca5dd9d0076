package registry

import (
	"context"
	"errors"
	"fmt"

	"github.com/refoldhq/refold/pkg/avro"
)

// ErrUnavailable says that the registry could not be asked, which is no word on the
// schema: whoever takes it for poison parks good events.
var ErrUnavailable = errors.New("the schema registry cannot be asked")

// Schemas finds schemas by id. Any error but [ErrUnknownSchema] means that it could
// not be asked.
type Schemas interface {
	SchemaByID(ctx context.Context, id int) (*avro.Schema, error)
}

// WriterOf returns the schema that a Kafka value was written with and the Avro body,
// which aliases the value. A value that names no schema is an [ErrUnknownSchema] too;
// other errors are [ErrUnavailable], unless it is ctx that has ended.
func WriterOf(ctx context.Context, schemas Schemas, value []byte) (writer *avro.Schema, body []byte, err error) {
	id, body, err := avro.SplitFrame(value)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrUnknownSchema, err)
	}
	writer, err = schemas.SchemaByID(ctx, id)
	switch {
	case err == nil:
		return writer, body, nil
	case errors.Is(err, ErrUnknownSchema), errors.Is(err, ErrUnavailable), ctx.Err() != nil:
		return nil, nil, fmt.Errorf("looking up the schema %d: %w", id, err)
	default:
		return nil, nil, fmt.Errorf("looking up the schema %d: %w: %w", id, ErrUnavailable, err)
	}
}

// WriterIfKnown is WriterOf for those who leave it to a fold to judge a value that
// names no schema: its writer is nil.
func WriterIfKnown(ctx context.Context, schemas Schemas, value []byte) (*avro.Schema, error) {
	writer, _, err := WriterOf(ctx, schemas, value)
	if errors.Is(err, ErrUnknownSchema) {
		return nil, nil
	}
	return writer, err
}
