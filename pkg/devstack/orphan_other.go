//go:build !linux

package devstack

import "syscall"

// dieWithParent does nothing where the kernel tells nobody of a parent's death:
// there a server outlives a parent that was killed.
func dieWithParent(*syscall.SysProcAttr, syscall.Signal) {}
