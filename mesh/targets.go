package mesh

import (
	"slices"
	"strings"
)

// workloadTargets are the ports of one workload that services send to.
type workloadTargets struct {
	list []Target
}

// targetsOf derives a workload's targets: from the services whose selector
// matches it, and from those that name it in slices made by hand (byHand). The oldest service decides
// what a port speaks. prev is returned when nothing differs.
func targetsOf(w *Workload, services *serviceIndex, byHand func(yield func(*Service, Port, uint16)), prev *workloadTargets) *workloadTargets {
	type use struct {
		svc  *Service
		port Port
	}
	uses := map[uint16][]use{}
	add := func(s *Service, p Port, number uint16) {
		if number == 0 {
			return
		}
		for _, u := range uses[number] {
			if u.svc == s && u.port.Number == p.Number {
				return
			}
		}
		uses[number] = append(uses[number], use{s, p})
	}
	services.selecting(w, func(s *Service) {
		for _, p := range s.Ports {
			number := p.TargetPort
			if p.TargetName != "" {
				number = w.ContainerPorts[p.TargetName]
			}
			add(s, p, number)
		}
	})
	if byHand != nil {
		byHand(add)
	}
	if len(uses) == 0 {
		return nil
	}
	next := &workloadTargets{list: make([]Target, 0, len(uses))}
	for number, us := range uses {
		slices.SortFunc(us, func(a, b use) int {
			if c := strings.Compare(a.svc.Host, b.svc.Host); c != 0 {
				return c
			}
			return int(a.port.Number) - int(b.port.Number)
		})
		t := Target{Port: number}
		oldest := us[0]
		for _, u := range us {
			t.Services, t.ServicePorts = append(t.Services, u.svc), append(t.ServicePorts, u.port)
			if byPrecedence(&u.svc.Meta, &oldest.svc.Meta) < 0 {
				oldest = u
			}
		}
		t.Protocol = oldest.port.Protocol
		next.list = append(next.list, t)
	}
	slices.SortFunc(next.list, func(a, b Target) int { return int(a.Port) - int(b.Port) })
	if prev != nil && slices.EqualFunc(prev.list, next.list, func(a, b Target) bool {
		return a.Port == b.Port && a.Protocol == b.Protocol && slices.Equal(a.Services, b.Services) && slices.Equal(a.ServicePorts, b.ServicePorts)
	}) {
		return prev
	}
	return next
}
