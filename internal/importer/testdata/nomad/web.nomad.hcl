# A service with checks, an update policy and the usual stanzas.
variable "version" {
  type    = string
  default = "1.4.2"
}

job "storefront" {
  datacenters = ["dc1", "dc2"]
  type        = "service"

  constraint {
    attribute = "${attr.kernel.name}"
    value     = "linux"
  }

  update {
    max_parallel      = 2
    min_healthy_time  = "15s"
    healthy_deadline  = "3m"
    progress_deadline = "10m"
    auto_revert       = true
    canary            = 1
    auto_promote      = true
  }

  group "web" {
    count = 3

    network {
      mode = "bridge"
      port "http" {
        static = 80
        to     = 8080
      }
      port "metrics" {}
    }

    service {
      name     = "storefront"
      port     = "http"
      tags     = ["urlprefix-/"]
      provider = "consul"

      check {
        name     = "alive"
        type     = "http"
        path     = "/health"
        interval = "10s"
        timeout  = "2s"
        failures_before_critical = 2

        check_restart {
          limit = 3
        }
      }
    }

    restart {
      attempts = 2
      interval = "30m"
      delay    = "15s"
      mode     = "fail"
    }

    task "server" {
      driver = "docker"

      config {
        image      = "registry.example.com/storefront:${var.version}"
        entrypoint = ["/bin/storefront"]
        args       = ["-listen", ":8080"]
        ports      = ["http", "metrics"]
      }

      env {
        LOG_LEVEL    = "info"
        METRICS_ADDR = "${NOMAD_ADDR_metrics}"
        WORKERS      = 4
      }

      template {
        data        = <<EOT
DB_PASSWORD={{ with secret "kv/db" }}{{ .Data.password }}{{ end }}
EOT
        destination = "secrets/db.env"
        env         = true
      }

      vault {
        policies = ["storefront"]
      }

      resources {
        cpu        = 500
        memory     = 512
        memory_max = 1024
      }

      kill_timeout = "20s"
      kill_signal  = "SIGINT"
    }
  }
}
