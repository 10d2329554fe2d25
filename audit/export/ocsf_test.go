package export_test

import (
	"encoding/json"
	"math"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/audit/export"
)

// schema is an excerpt of OCSF's, see testdata/README.md.
type schema struct {
	Class   object            `json:"class"`
	Objects map[string]object `json:"objects"`
}

type object struct {
	Attributes map[string]attribute `json:"attributes"`
	AtLeastOne []string             `json:"at_least_one"`
}

type attribute struct {
	Type     string            `json:"type"`
	Array    bool              `json:"array"`
	Required bool              `json:"required"`
	Enum     map[string]string `json:"enum"`
	Sibling  string            `json:"sibling"`
}

var ocsf = sync.OnceValues(func() (s schema, err error) {
	data, err := os.ReadFile("testdata/ocsf-api-activity.json")
	if err == nil {
		err = json.Unmarshal(data, &s)
	}
	return s, err
})

// validate holds an event to the schema: no attribute that it does not know, all
// that it requires, types, enumerations with their captions.
func validate(t *testing.T, line []byte) {
	t.Helper()
	s, err := ocsf()
	if err != nil {
		t.Fatal(err)
	}
	var event map[string]any
	if err := json.Unmarshal(line, &event); err != nil {
		t.Fatal(err)
	}
	s.check(t, "", s.Class, event)
	class, activity, kind := event["class_uid"].(float64), event["activity_id"].(float64), event["type_uid"].(float64)
	if kind != class*100+activity {
		t.Errorf("type_uid is %v of class %v and activity %v", kind, class, activity)
	}
}

func (s schema) check(t *testing.T, path string, o object, v map[string]any) {
	t.Helper()
	for name, a := range o.Attributes {
		if _, there := v[name]; a.Required && !there {
			t.Errorf("%s/%s is required", path, name)
		}
	}
	if len(o.AtLeastOne) > 0 && !slices.ContainsFunc(o.AtLeastOne, func(name string) bool { return v[name] != nil }) {
		t.Errorf("%s has none of %v", path, o.AtLeastOne)
	}
	for name, value := range v {
		a, known := o.Attributes[name]
		if !known {
			t.Errorf("%s/%s: OCSF has no such attribute", path, name)
			continue
		}
		values := []any{value}
		if a.Array {
			list, ok := value.([]any)
			if !ok {
				t.Errorf("%s/%s is no list", path, name)
			}
			values = list
		}
		for _, x := range values {
			s.value(t, path+"/"+name, a, x)
			if number, ok := x.(float64); ok && a.Enum != nil {
				key := strconv.FormatFloat(number, 'f', -1, 64)
				caption, known := a.Enum[key]
				if !known {
					t.Errorf("%s/%s = %s is not in the enumeration", path, name, key)
				}
				if said, there := v[a.Sibling]; there && said != caption && key != "99" {
					t.Errorf("%s/%s is %q, want %q", path, a.Sibling, said, caption)
				}
				if v[a.Sibling] == nil && key == "99" {
					t.Errorf("%s/%s is Other and %s does not say what", path, name, a.Sibling)
				}
			}
		}
	}
}

func (s schema) value(t *testing.T, path string, a attribute, v any) {
	t.Helper()
	switch a.Type {
	case "string_t", "username_t", "resource_uid_t", "hostname_t", "file_hash_t":
		if _, ok := v.(string); !ok {
			t.Errorf("%s is no text", path)
		}
	case "integer_t", "long_t", "timestamp_t":
		if n, ok := v.(float64); !ok || n != math.Trunc(n) {
			t.Errorf("%s is no whole number", path)
		}
	case "boolean_t":
		if _, ok := v.(bool); !ok {
			t.Errorf("%s is no boolean", path)
		}
	case "object":
	default:
		o, known := s.Objects[a.Type]
		fields, ok := v.(map[string]any)
		if !known || !ok {
			t.Errorf("%s is no %s, or that is not in the excerpt", path, a.Type)
			return
		}
		s.check(t, path, o, fields)
	}
}

// Records of all kinds are valid API Activity.
func TestOCSF(t *testing.T) {
	whats := []string{creto.CallModel, creto.CallTool, creto.HTTPRequest, creto.AccessSecret, creto.SpawnSandbox, audit.EventNodeStarted, audit.EventTokenIssued,
		audit.EventHumanRemoved, audit.EventPolicyChanged, audit.EventSplitView, audit.EventAuditGap, audit.EventPasskeyCloned, audit.EventSecretSet, audit.EventKeyRotated, "anything"}
	activities := map[string]float64{audit.EventTokenIssued: 1, creto.SpawnSandbox: 1, creto.AccessSecret: 2, audit.EventPolicyChanged: 3, audit.EventHumanRemoved: 4, creto.CallModel: 99}
	for _, what := range whats {
		for _, outcome := range []audit.Outcome{audit.Success, audit.Failure, audit.Denied, audit.Timeout, audit.Unknown} {
			for _, kind := range []creto.Kind{creto.KindAgent, creto.KindHuman, creto.KindWorkload} {
				for _, bare := range []bool{false, true} {
					e := full()
					r := &e.Record
					r.What, r.Outcome, r.Who.Kind = what, outcome, kind
					if bare {
						*r = audit.Record{ID: r.ID, Stamp: creto.Timestamp{Physical: 1}, Who: r.Who, What: what, Outcome: outcome}
					}
					line, err := export.OCSF.EncodeLine(origin, e)
					if err != nil {
						t.Fatal(err)
					}
					validate(t, line)
					var event struct {
						Activity float64 `json:"activity_id"`
						Severity int     `json:"severity_id"`
					}
					if err := json.Unmarshal(line, &event); err != nil {
						t.Fatal(err)
					}
					if want, ok := activities[what]; ok && event.Activity != want {
						t.Errorf("%s is activity %v, want %v", what, event.Activity, want)
					}
					if critical := event.Severity == 5; critical != (what == audit.EventSplitView) {
						t.Errorf("%s, %s has severity %d", what, outcome, event.Severity)
					}
				}
			}
		}
	}
}
