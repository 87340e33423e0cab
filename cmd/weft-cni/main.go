// Command weft-cni is the CNI plugin. See package cni.
package main

import (
	"github.com/containernetworking/cni/pkg/skel"

	"github.com/weft-mesh/weft/cni"
)

func main() {
	skel.PluginMainFuncs(cni.Commands(), cni.Versions, "weft-cni: redirects the traffic of injected pods to their sidecar")
}
