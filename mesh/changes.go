package mesh

import (
	"iter"
	"maps"
)

// Key names one object.
type Key struct {
	Kind      string // "VirtualService", "Service", "Pod", ...
	Namespace string // empty for cluster-scoped kinds
	Name      string
}

// String gives "VirtualService default/reviews".
func (k Key) String() string { return Ref{Kind: k.Kind, Namespace: k.Namespace, Name: k.Name}.String() }

// ChangeSet is the set of objects that differ between two snapshots. Besides the
// kinds that users write it has the kind "Endpoints", which stands for the derived endpoints
// of a host: its Name is the host.
type ChangeSet struct {
	keys map[Key]struct{}
}

// KindEndpoints is the kind of a [Key] whose Name is a host with other endpoints than before.
const KindEndpoints = "Endpoints"

func (c *ChangeSet) add(k Key) {
	if c.keys == nil {
		c.keys = map[Key]struct{}{}
	}
	c.keys[k] = struct{}{}
}

func (c *ChangeSet) merge(o ChangeSet) {
	if c.keys == nil && len(o.keys) > 0 {
		c.keys = make(map[Key]struct{}, len(o.keys))
	}
	maps.Copy(c.keys, o.keys)
}

// Len is the number of changed objects.
func (c ChangeSet) Len() int { return len(c.keys) }

// Has reports whether this object changed.
func (c ChangeSet) Has(k Key) bool { _, ok := c.keys[k]; return ok }

// HasKind reports whether an object of this kind changed.
func (c ChangeSet) HasKind(kind string) bool {
	for k := range c.keys {
		if k.Kind == kind {
			return true
		}
	}
	return false
}

// All yields the changed objects in no particular order.
func (c ChangeSet) All() iter.Seq[Key] { return maps.Keys(c.keys) }
