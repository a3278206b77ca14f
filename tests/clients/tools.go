//go:build tools

// Package tools names the programs that the tests use, so that go.mod keeps their versions.
package tools

import (
	_ "sigs.k8s.io/cri-tools/cmd/crictl"
	// What critest consists of: its own package has only a test, which nothing can import.
	_ "sigs.k8s.io/cri-tools/pkg/benchmark"
	_ "sigs.k8s.io/cri-tools/pkg/validate"
)
