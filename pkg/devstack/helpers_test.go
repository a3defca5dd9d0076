package devstack_test

import (
	"strconv"
	"time"
)

const (
	waitLimit = 10 * time.Second
	pollEvery = 10 * time.Millisecond
)

func itoa(n uint16) string { return strconv.Itoa(int(n)) }
