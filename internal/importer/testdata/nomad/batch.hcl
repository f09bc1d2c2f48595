# One of two tasks, in a batch job.
job "nightly" {
  type = "batch"

  periodic {
    crons = ["0 3 * * *"]
  }

  group "export" {
    ephemeral_disk {
      size   = 2048
      sticky = true
    }

    task "prepare" {
      driver = "docker"
      lifecycle {
        hook = "prestart"
      }
      config {
        image = "registry.example.com/prepare:1"
      }
    }

    task "export" {
      driver = "docker"
      user   = "1000"
      config {
        image   = "registry.example.com/export:1"
        command = "/usr/bin/export"
        args    = ["--all"]
        volumes = ["/srv/data:/data"]
        privileged = true
      }
      resources {
        cores  = 2
        memory = 4096
      }
    }
  }

  group "report" {
    task "report" {
      driver = "exec"
      config {
        command = "/bin/report"
      }
    }
  }
}
