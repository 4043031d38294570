package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestEachKindHasASchemaThatTakesNoOtherField(t *testing.T) {
	folder := t.TempDir()
	openapi := `{"definitions": {
		"apps.Deployment": {"type": "object", "properties": {"port": {"type": "string", "format": "int-or-string"}, "spec": {"$ref": "#/definitions/apps.Spec"}},
			"x-kubernetes-group-version-kind": [{"group": "apps.example.com", "kind": "Deployment", "version": "v1"}]},
		"apps.Spec": {"type": "object", "properties": {"more": {"$ref": "#/definitions/apps.Spec"}, "any": {"type": "object"}}},
		"core.Pod": {"type": "object", "x-kubernetes-group-version-kind": [{"group": "", "kind": "Pod", "version": "v1"}]}}}`
	equal(t, writeSchemas(strings.NewReader(openapi), folder), nil)
	read := func(name string) (schema struct {
		Ref         string                    `json:"$ref"`
		Definitions map[string]map[string]any `json:"definitions"`
	}) {
		file, err := os.ReadFile(filepath.Join(folder, name))
		equal(t, err, nil)
		equal(t, json.Unmarshal(file, &schema), nil)
		return schema
	}
	deployment := read("deployment-apps-v1.json")
	equal(t, deployment.Ref, "#/definitions/apps.Deployment")
	equal(t, len(deployment.Definitions), 2)
	equal(t, deployment.Definitions["apps.Deployment"]["additionalProperties"], false)
	equal(t, deployment.Definitions["apps.Spec"]["additionalProperties"], false)
	properties := deployment.Definitions["apps.Deployment"]["properties"].(map[string]any)
	equal(t, properties["port"], map[string]any{"type": []any{"integer", "string"}})
	equal(t, len(read("pod-v1.json").Definitions), 1)
	if writeSchemas(strings.NewReader("nonsense"), folder) == nil {
		t.Error("nonsense was taken")
	}
}
