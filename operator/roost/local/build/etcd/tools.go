//go:build tools

// Package tools pins the etcd of the local control plane; `roost local up` builds it where no download is at hand.
package tools

import _ "go.etcd.io/etcd/server/v3"
