//go:build tools

// Package tools names the programs that the tests use, so that go.mod keeps their versions.
package tools

import _ "sigs.k8s.io/cri-tools/cmd/crictl"
