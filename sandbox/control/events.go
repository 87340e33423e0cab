package control

import (
	"fmt"
	"hash/fnv"
	"sort"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-mesh/weft/sandbox/store"
)

// keptEvents bounds the events of a sandbox; the oldest go first.
const keptEvents = 1000

// Event records that something happened to an object. The same reason and
// message again only raise the count, as client-go's recorder does.
func (c *Control) Event(about store.Object, kind, reason, message string) {
	k, ok := store.KindFor(about)
	if !ok {
		return
	}
	ns := about.GetNamespace()
	if ns == "" {
		ns = metav1.NamespaceDefault
	}
	h := fnv.New64a()
	fmt.Fprint(h, about.GetUID(), "\x00", kind, "\x00", reason, "\x00", message)
	key := store.Key{Resource: "events", Namespace: ns, Name: fmt.Sprintf("%s.%016x", about.GetName(), h.Sum64())}
	now := metav1.NewTime(time.Now().Truncate(time.Second))
	again := func(o store.Object) error {
		e := o.(*corev1.Event)
		e.Count++
		e.LastTimestamp = now
		return nil
	}
	if _, err := c.store().Update(key, again); err == nil {
		return
	}
	gv := k.Version
	if k.Group != "" {
		gv = k.Group + "/" + k.Version
	}
	if _, err := c.store().Create(&corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Namespace: ns, Name: key.Name},
		InvolvedObject: corev1.ObjectReference{APIVersion: gv, Kind: k.Kind, Namespace: about.GetNamespace(), Name: about.GetName(), UID: about.GetUID()},
		Reason:         reason, Message: message, Type: kind, Count: 1, FirstTimestamp: now, LastTimestamp: now,
		Source: corev1.EventSource{Component: component(k.Kind, reason), Host: c.Node},
	}); err != nil {
		return // somebody else recorded the same event first
	}
	c.forgetOldEvents()
}

// component names who would report this in a cluster, which is where a reader looks for the cause.
func component(kind, reason string) string {
	switch {
	case reason == "Scheduled":
		return "default-scheduler"
	case kind == "Pod":
		return "kubelet"
	}
	return strings.ToLower(kind) + "-controller"
}

func (c *Control) forgetOldEvents() {
	all := store.List[*corev1.Event](c.store(), "events", "", nil)
	if len(all) <= keptEvents {
		return
	}
	sort.Slice(all, func(i, j int) bool { return all[i].LastTimestamp.Before(&all[j].LastTimestamp) })
	for _, e := range all[:len(all)-keptEvents*9/10] {
		c.store().Remove(store.KeyOf(e))
	}
}
