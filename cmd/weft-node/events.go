package main

import (
	"fmt"
	"log/slog"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"

	"github.com/weft-mesh/weft/cni/node"
)

// Reasons of events, as `kubectl get events` shows them.
const (
	reasonRepaired     = "RedirectRepaired"     // pod: its rules were put right, live
	reasonRepairFailed = "RedirectRepairFailed" // pod: its traffic goes around its sidecar
	reasonNotReady     = "ProxyNotReady"        // pod: its start waits for its proxy
	reasonChainBroken  = "MeshCNIBroken"        // node: new pods are made without the plugin
	reasonChainReady   = "MeshCNIReady"         // node: the plugin is last in the chain
	reasonInotifyLow   = "InotifyLimitLow"      // node: it can hold only so many sidecars
	reasonRemoved      = "MeshCNIRemoved"       // node: everything is undone
	reasonRemoveFailed = "MeshCNIRemoveFailed"  // node: something is not undone; tried again
)

// teller writes events where users look, and the log.
type teller struct {
	node     string
	recorder record.EventRecorder // nil without an API server
	log      *slog.Logger
}

// newTeller sends events until stop is called.
func newTeller(api corev1client.EventsGetter, nodeName string, log *slog.Logger) (t teller, stop func()) {
	b := record.NewBroadcaster()
	b.StartRecordingToSink(&corev1client.EventSinkImpl{Interface: api.Events("")})
	r := b.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "weft-node", Host: nodeName})
	return teller{node: nodeName, recorder: r, log: log}, b.Shutdown
}

func (t teller) event(about corev1.ObjectReference, kind, reason, message string) {
	if t.recorder != nil {
		t.recorder.Event(&about, kind, reason, message)
	}
}

// pod is a pod as kubelet's own events about its proxy name it.
func pod(s node.Sandbox) corev1.ObjectReference {
	return corev1.ObjectReference{Kind: "Pod", APIVersion: "v1", Namespace: s.Namespace, Name: s.Name, UID: types.UID(s.UID)}
}

// late tells that kubelet waited in vain for a pod's proxy.
func (t teller) late(s node.Sandbox, why error) {
	t.log.Warn("a pod does not start", "pod", s.Namespace+"/"+s.Name, "error", why)
	about := pod(s)
	about.FieldPath = "spec.initContainers{istio-proxy}"
	t.event(about, corev1.EventTypeWarning, reasonNotReady, why.Error())
}

// repaired tells what was done for a pod.
func (t teller) repaired(r node.Repair) {
	about := pod(r.Sandbox)
	log := t.log.With("pod", r.Namespace+"/"+r.Name, "reason", r.Reason, "sandbox", r.ID)
	if r.Err != nil {
		log.Error("pod is not redirected", "error", r.Err)
		t.event(about, corev1.EventTypeWarning, reasonRepairFailed, fmt.Sprintf("The pod's traffic does not go through its sidecar, and this could not be repaired: %v", r.Err))
		return
	}
	log.Info("pod's redirect rules repaired", "took", r.Took, "drift", shortened(r.Drift))
	why := "its network was made without weft-cni in the node's CNI chain"
	if r.Reason == node.ReasonDrift {
		why = "somebody had changed them (" + shortened(r.Drift) + ")"
	}
	t.event(about, corev1.EventTypeNormal, reasonRepaired, fmt.Sprintf("The pod's redirect rules were put right in %s, without a restart: %s", r.Took.Round(100*time.Microsecond), why))
}

// chain tells of a change of the chain's state.
func (t teller) chain(file, problem string) {
	about := t.self()
	if problem != "" {
		t.log.Warn("the CNI chain is broken", "problem", problem)
		t.event(about, corev1.EventTypeWarning, reasonChainBroken, "New pods of the mesh cannot be redirected when they start: "+problem)
		return
	}
	t.log.Info("the CNI chain is complete", "file", file)
	t.event(about, corev1.EventTypeNormal, reasonChainReady, "weft-cni is the last plugin of "+file)
}

// inotifyLow tells how many sidecars the node can hold.
func (t teller) inotifyLow(text string) {
	t.log.Warn(text)
	t.event(t.self(), corev1.EventTypeWarning, reasonInotifyLow, text)
}

// uninstalled tells how the uninstallation stands.
func (t teller) uninstalled(err error) {
	if err != nil {
		t.log.Error("not everything is undone, trying again", "error", err)
		t.event(t.self(), corev1.EventTypeWarning, reasonRemoveFailed, fmt.Sprintf("weft-cni is not uninstalled yet: %v", err))
		return
	}
	t.log.Info("weft-cni is uninstalled from this node; waiting to be stopped", "node", t.node)
	t.event(t.self(), corev1.EventTypeNormal, reasonRemoved, "weft-cni and its entry in the network configuration were taken back")
}

// self is the node as kubelet's own events name it.
func (t teller) self() corev1.ObjectReference {
	return corev1.ObjectReference{Kind: "Node", APIVersion: "v1", Name: t.node, UID: types.UID(t.node)}
}

// shortened keeps an event below its thousand characters.
func shortened(list []string) string {
	const most = 3
	if len(list) > most {
		return fmt.Sprintf("%s; and %d more", strings.Join(list[:most], "; "), len(list)-most)
	}
	return strings.Join(list, "; ")
}
