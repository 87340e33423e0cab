package cni

import (
	"errors"
	"fmt"
	"strings"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
)

// Error codes of this plugin (CNI spec 1.1 section 5: codes from 100 on are the plugin's own).
const (
	CodeBadAnnotation = 100 // the pod's weft.dev/redirect annotation is not a valid Spec
	CodeUnknownPod    = 101 // nobody could say whether the pod is injected
	CodeKernel        = 102 // the kernel refused the rules
	CodeDrift         = 103 // CHECK found rules that differ from the Spec
)

// Versions are the versions of the CNI spec that the plugin speaks.
var Versions = version.PluginSupports("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")

// Commands are the plugin's verbs, for skel.PluginMainFuncs. Their results go to standard output.
func Commands() skel.CNIFuncs {
	return skel.CNIFuncs{Add: Add, Check: Check, Del: Del, GC: GC, Status: Status}
}

// fail makes an error that reads well at the end of kubelet's line, where it is seen in `kubectl describe pod`: one line, the pod first.
func fail(code uint, p pod, err error) error {
	text := strings.Join(strings.Split(err.Error(), "\n"), "; ")
	if p.name != "" {
		text = fmt.Sprintf("pod %s: %s", p, text)
	}
	return types.NewError(code, "weft: "+text, "")
}

// pod is what the runtime says about the pod in CNI_ARGS. Its name is empty when this is not Kubernetes.
type pod struct {
	namespace, name, uid string
}

func (p pod) String() string { return p.namespace + "/" + p.name }

// parsePod reads CNI_ARGS: KEY=VALUE pairs with semicolons between them. Other keys are other plugins' business.
func parsePod(args string) pod {
	var p pod
	for pair := range strings.SplitSeq(args, ";") {
		key, value, _ := strings.Cut(pair, "=")
		switch key {
		case "K8S_POD_NAMESPACE":
			p.namespace = value
		case "K8S_POD_NAME":
			p.name = value
		case "K8S_POD_UID":
			p.uid = value
		}
	}
	return p
}

// codeOf keeps the code of an error that has one.
func codeOf(err error, otherwise uint) uint {
	var e *types.Error
	if errors.As(err, &e) {
		return e.Code
	}
	return otherwise
}
