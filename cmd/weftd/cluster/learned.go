package cluster

import (
	"context"
	"fmt"
	"strconv"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-mesh/weft/cmd/weftd/learned"
)

const (
	// learnedConfigMap and the number of a shard is the name of a ConfigMap. Names are fixed, so that the control plane's rights can name them.
	learnedConfigMap = "weft-learned-"
	// learnedLabel marks them, for people and for uninstalling.
	learnedLabel = "weft.dev/learned"
	learnedKey   = "learned.json"
)

// learnedMaps keeps what workloads have asked for in ConfigMaps of a namespace. It is a learned.Store.
type learnedMaps struct {
	cluster   *Cluster
	namespace string

	mu   sync.Mutex
	seen [learned.Shards]*corev1.ConfigMap // as the API server said last; nil for one that is not there, or not read yet
}

// Learned is the record of what workloads have asked for, in ConfigMaps weft-learned-0 and so on of a namespace. All revisions share it.
func (c *Cluster) Learned(namespace string) learned.Store {
	return &learnedMaps{cluster: c, namespace: namespace}
}

func learnedName(shard int) string { return learnedConfigMap + strconv.Itoa(shard) }

// Follow implements learned.Store. The rights are for certain names, so each has a watch of its own.
func (m *learnedMaps) Follow(ctx context.Context, read func(shard int, text []byte)) error {
	var running sync.WaitGroup
	defer running.Wait()
	var one sync.Mutex
	client := m.cluster.core.ConfigMaps(m.namespace)
	for shard := range learned.Shards {
		running.Go(func() {
			followOne(ctx, &corev1.ConfigMap{}, client, learnedName(shard), func(current *corev1.ConfigMap) {
				m.note(shard, current)
				one.Lock()
				defer one.Unlock()
				read(shard, textOf(current))
			})
		})
	}
	return nil
}

func textOf(c *corev1.ConfigMap) []byte {
	if c == nil || c.Data[learnedKey] == "" {
		return nil
	}
	return []byte(c.Data[learnedKey])
}

// Update implements learned.Store.
func (m *learnedMaps) Update(ctx context.Context, shard int, change func([]byte) []byte) error {
	client, name := m.cluster.core.ConfigMaps(m.namespace), learnedName(shard)
	m.mu.Lock()
	current := m.seen[shard]
	m.mu.Unlock()
	const tries = 10
	for range tries {
		text := change(textOf(current))
		if text == nil {
			return nil
		}
		var err error
		if current == nil {
			current, err = client.Create(ctx, &corev1.ConfigMap{
				ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: m.namespace, Labels: map[string]string{learnedLabel: "true"}},
				Data:       map[string]string{learnedKey: string(text)},
			}, metav1.CreateOptions{})
		} else {
			next := current.DeepCopy()
			next.Data = map[string]string{learnedKey: string(text)}
			next.BinaryData = nil
			current, err = client.Update(ctx, next, metav1.UpdateOptions{})
		}
		switch {
		case err == nil:
			m.note(shard, current)
			return nil
		case !apierrors.IsAlreadyExists(err) && !apierrors.IsConflict(err) && !apierrors.IsNotFound(err):
			return fmt.Errorf("ConfigMap %s/%s: %w", m.namespace, name, err)
		}
		// Somebody else was faster, or it is gone.
		current, err = client.Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			current, err = nil, nil
		}
		if err != nil {
			return fmt.Errorf("ConfigMap %s/%s: %w", m.namespace, name, err)
		}
	}
	return fmt.Errorf("ConfigMap %s/%s: others wrote it %d times meanwhile", m.namespace, name, tries)
}

func (m *learnedMaps) note(shard int, current *corev1.ConfigMap) {
	m.mu.Lock()
	m.seen[shard] = current
	m.mu.Unlock()
}
